"""Every hyper-parameter, with its unit and its source, and the presets `storm`, `paper`, `tiny`, `lean` and `plus`.

`storm` follows the released code, which produced the published scores; `paper` follows the paper's equations
where the two differ; `tiny` is small enough to learn Freeway on two CPU cores in minutes; `lean` is the authors'
later recipe, `plus` that with single changes that others published. Sources: "Table 10" and "eq." are STORM's;
"released" is the authors' code. Fields marked DEVIATION change
numerics or order against the released code; their defaults do not.
"""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from storm_fast.errors import InputError


def _want(condition: bool, wanted: str, got: object) -> None:
    if not condition:
        raise InputError(f"want {wanted}; got {got}")


@dataclass(frozen=True)
class EnvConfig:
    """The Atari environment (STORM sec. 4.1 and Table 10)."""

    num_envs: int = 1
    """games played side by side (released: 1)"""
    sticky: float = 0.25
    """probability, per emulator frame, that the previous action is repeated (released, ALE v5; peers use 0)"""
    full_action_space: bool = False
    """all 18 actions instead of the game's minimal set (released: False)"""
    frame_skip: int = 4
    """emulator frames per step, the action repeated (Table 10)"""
    frame_cap: int = 108_000
    """emulator frames after which an episode is truncated (ALE v5: 30 minutes of play; `lean`: 20,000)"""
    noops: int = 0
    """emulator frames without an action that begin an episode, at most; how many is random (released: 0; `lean`: 30)"""
    collector: Literal["auto", "native", "ale_vector", "gym"] = "auto"
    """who steps the games: `native`, C++; `gym`, its slow twin; `ale_vector`, ale_py's vector environment, which
    departs in details; `auto`: native where it was built, else ale_vector"""
    num_threads: int = 0
    """threads that step the games, the calling one among them; 0: as many as cores and games (`gym`: always one)"""

    def __post_init__(self) -> None:
        _want(self.num_envs >= 1, "--num-envs of at least 1", self.num_envs)
        _want(0 <= self.sticky < 1, "--sticky in [0, 1)", self.sticky)
        _want(self.num_threads >= 0, "--num-threads of at least 0", self.num_threads)
        _want(self.frame_skip >= 1, "--frame-skip of at least 1", self.frame_skip)
        _want(self.frame_cap >= self.frame_skip, "--frame-cap of at least --frame-skip", self.frame_cap)
        _want(0 <= self.noops < self.frame_cap, "--noops of at least 0, below --frame-cap", self.noops)


@dataclass(frozen=True)
class ModelConfig:
    """The world model: sizes, losses, optimiser (STORM sec. 3.1, Tables 3 to 10)."""

    stem_channels: int = 32
    """channels after the first convolution, doubled by each of the three that follow (Table 3)"""
    latents: int = 32
    """categorical variables per frame, G (sec. 3.1)"""
    classes: int = 32
    """classes per categorical variable, C (sec. 3.1)"""
    conv_activation: Literal["relu", "silu"] = "relu"
    """behind each batch normalisation of encoder and decoder (Tables 3 and 4; `lean`: silu)"""
    width: int = 512
    """transformer feature dimension, D; also the hidden width of the heads (Table 10)"""
    layers: int = 2
    """transformer blocks; 4 and 6 are the paper's ablation (Table 10, fig. 3b)"""
    heads: int = 8
    """attention heads of width / heads each (Table 10)"""
    dropout: float = 0.1
    """dropout probability in the transformer blocks (Table 10)"""
    max_positions: int = 64
    """rows of the learned position table (Table 6; released: 64 whatever the batch length)"""
    unimix: float = 0.01
    """share of the uniform distribution mixed into every latent distribution (released; DV3)"""
    bins: int = 255
    """two-hot bins over symlog values in [-20, 20], V (Table 9, DV3)"""
    batch: int = 16
    """replay windows per world-model update, B1 (Table 10)"""
    demonstration_batch: int = 4
    """further windows per update from the demonstration, if there is one (released)"""
    length: int = 64
    """steps per window, T (Table 10)"""
    reconstruction_weight: float = 1.0
    """factor of the reconstruction loss (eq. 3). DEVIATION in `tiny`: 20, or the KL decides what the small
    encoder keeps, and small moving objects are not among it"""
    reward_weight: float = 1.0
    """factor of the reward loss (eq. 3). DEVIATION in `tiny`: 100, a rare reward is otherwise not
    learned in minutes"""
    dynamics_weight: float = 0.5
    """beta_1, factor of the dynamics loss (eq. 3). DEVIATION in `tiny`: 3, or imagination loses what the latents hold:
    the probe of probe.py stayed near 0.6 at 0.5"""
    representation_weight: float = 0.1
    """beta_2, factor of the representation loss (eq. 3)"""
    loss_balance: Literal["fixed", "harmonised"] = "fixed"
    """`fixed`: the losses count as their weights say (eq. 3). `harmonised`: reconstruction, reward and KL, each with
    its weights, are divided by a learned scale, L / sigma + log(1 + sigma) (HarmonyDream, Ma et al. 2024, eq. 5), so
    that none drowns the others; the loss of ends is not. Published for DreamerV3 on Atari 100k: +0.135 IQM"""
    free_nats: float = 1.0
    """KL in nats below which it is not reduced further (eq. 5)"""
    free_nats_per: Literal["batch", "step"] = "batch"
    """whether max(free_nats, KL) is taken of the batch's mean (released) or of every step's KL (eq. 5)"""
    decoder_input: Literal["posterior", "prior"] = "posterior"
    """the latent that is reconstructed; `prior` is the ablation "decoder at rear" (fig. 3a)"""
    predictor_input: Literal["hidden", "latent"] = "hidden"
    """what reward and end are read from; `latent` is the ablation "predictor at front" (fig. 3a)"""
    posterior_norm: float = 0.0
    """0: none (released). DEVIATION in `tiny`: batch normalisation of the posterior logits times this, so that
    the latents are used from the first update on"""
    center_frames: bool = False
    """DEVIATION in `tiny`: subtract the warm-up's mean frame before the encoder and add it after the decoder, so
    that the small model spends itself on what moves"""
    zero_outputs: bool = False
    """DEVIATION in `tiny`: the last layers of decoder and reward head start at zero (DV3 does so for rewards), so
    that the first updates do not spend themselves, and the decoder's activations, on undoing random outputs"""
    model_lr: float = 1e-4
    """learning rate of Adam, eps 1e-8 (Table 10). DEVIATION in `tiny`: 1e-3, it has minutes"""
    model_clip: float = 1000.0
    """largest global norm of the gradient (Table 10)"""

    def __post_init__(self) -> None:
        sizes = ("stem_channels", "latents", "width", "layers", "heads", "batch")
        for name in sizes:
            _want(getattr(self, name) >= 1, f"--{name.replace('_', '-')} of at least 1", getattr(self, name))
        _want(self.classes >= 2, "--classes of at least 2", self.classes)
        _want(self.bins >= 3, "--bins of at least 3", self.bins)
        _want(self.demonstration_batch >= 0, "--demonstration-batch of at least 0", self.demonstration_batch)
        _want(0 < self.unimix < 1, "--unimix in (0, 1), or an impossible class gives an infinite KL", self.unimix)
        _want(0 < self.model_lr < math.inf, "a positive --model-lr", self.model_lr)
        _want(self.model_clip > 0, "a positive --model-clip", self.model_clip)
        _want(self.width % self.heads == 0, "--width divisible by --heads", (self.width, self.heads))
        _want(2 <= self.length <= self.max_positions, "--length in [2, --max-positions]", self.length)
        _want(0 <= self.dropout < 1, "--dropout in [0, 1)", self.dropout)


@dataclass(frozen=True)
class ImagineConfig:
    """Imagination: how many trajectories, how long, from where (STORM sec. 3.2)."""

    imagine_batch: int = 1024
    """imagined trajectories per agent update that start in the replay, B2 (Table 10)"""
    imagine_demonstration_batch: int = 256
    """further trajectories that start in the demonstration, if there is one (released)"""
    context: int = 8
    """real steps that precede each imagined trajectory, C (Table 10)"""
    horizon: int = 16
    """imagined steps, L (Table 10)"""
    context_source: Literal["replay", "model_batch"] = "replay"
    """`replay`: contexts are sampled and encoded anew (released). DEVIATION in `tiny`: `model_batch`, they are cut
    from the latents of the last world-model update, which saves the second encoding"""

    def __post_init__(self) -> None:
        _want(self.imagine_batch >= 1, "--imagine-batch of at least 1", self.imagine_batch)
        given = self.imagine_demonstration_batch
        _want(given >= 0, "--imagine-demonstration-batch of at least 0", given)
        _want(self.context >= 1, "--context of at least 1", self.context)
        _want(self.horizon >= 1, "--horizon of at least 1", self.horizon)


@dataclass(frozen=True)
class AgentConfig:
    """Actor and critic (STORM sec. 3.2, eqs. 6 to 10)."""

    agent_width: int = 512
    """hidden width of actor and critic (Table 9: D)"""
    agent_layers: int = 2
    """hidden layers of actor and critic, each with a LayerNorm (Table 9; `lean`: 3)"""
    agent_activation: Literal["relu", "silu"] = "relu"
    """behind each of those normalisations (Table 9; `lean`: silu)"""
    agent_updates: int = 1
    """agent updates after each imagination, each on an equal share of its trajectories (released: 1; `lean`: 4)"""
    policy_loss: Literal["log_prob", "ratio"] = "log_prob"
    """what the advantage weighs in eq. 7a: the log-probability of the action taken, or (`lean`) the ratio of its
    probability now to that under the policy that imagined, not clipped; their gradients are equal where the two are"""
    agent_state: Literal["latent+hidden", "latent", "hidden", "reconstruction"] = "latent+hidden"
    """what the agent sees: [z, h] (eq. 6), or the ablations z, h and the decoded frame (fig. 4)"""
    gamma: float = 0.985
    """discount per step (Table 10)"""
    lam: float = 0.95
    """lambda of the lambda-return (Table 10)"""
    entropy: float = 3e-4
    """eta, factor of the policy's entropy in nats (Table 10). DEVIATION in `tiny`: 1e-4, its returns are small"""
    bootstrap: Literal["current", "next"] = "current"
    """the value mixed into the lambda-return at step t: V(s_t) (released) or V(s_{t+1}) (eq. 8)"""
    critic_loss: Literal["two_hot", "squared"] = "two_hot"
    """cross-entropy to the two-hot target (released, and DV3, which the paper follows), or the squared error that
    eq. 7b prints"""
    critic_target: Literal["lambda_return", "value"] = "lambda_return"
    """what the critic is held to by its slow copy: that copy's lambda-return (released) or its V(s_t) (eq. 7b)"""
    slow_weight: float = 1.0
    """factor of that regulariser (eq. 7b)"""
    slow_decay: float = 0.98
    """sigma, decay per update of the slow critic (Table 10, eq. 10)"""
    return_scale: Literal["ema", "batch"] = "ema"
    """percentiles of the return behind S: moving averages (released) or the batch's own (eq. 9)"""
    return_decay: float = 0.99
    """decay per update of those moving averages, which start at 0 (released)"""
    imagined_end: Literal["hard", "weighted"] = "hard"
    """`hard`: an end is predicted when its logit is positive, and later steps still count (released);
    `weighted`: the end is a probability and each step counts by the discounted chance of being reached (DV3)"""
    agent_lr: float = 3e-5
    """learning rate of Adam, eps 1e-5 (Table 10; eps: released). DEVIATION in `tiny`: 3e-4, it has minutes"""
    agent_clip: float = 100.0
    """largest joint global norm of the gradients of actor and critic (Table 10)"""
    agent_start: int = 0
    """world-model updates that go before the one with the agent's first (released: 0). DEVIATION in `tiny`:
    1,200, imagination in an untrained model teaches nothing"""
    critic_warmup: int = 0
    """agent updates in which the critic learns alone, before the actor's first (released: 0). DEVIATION in `tiny`: 50,
    or the policy settles on any action before the critic knows anything"""

    def __post_init__(self) -> None:
        for name in ("agent_width", "agent_layers", "agent_updates"):
            _want(getattr(self, name) >= 1, f"--{name.replace('_', '-')} of at least 1", getattr(self, name))
        _want(self.critic_warmup >= 0, "--critic-warmup of at least 0", self.critic_warmup)
        for name in ("gamma", "lam", "slow_decay", "return_decay"):
            _want(0 <= getattr(self, name) <= 1, f"--{name.replace('_', '-')} in [0, 1]", getattr(self, name))
        _want(0 < self.agent_lr < math.inf, "a positive --agent-lr", self.agent_lr)
        _want(self.agent_clip > 0, "a positive --agent-clip", self.agent_clip)
        _want(0 <= self.entropy < math.inf, "--entropy of at least 0", self.entropy)


@dataclass(frozen=True)
class LoopConfig:
    """How collecting, learning and acting follow each other (STORM Table 10 and the released loop)."""

    warmup: int = 1024
    """steps with random actions before learning starts (released)"""
    capacity: int = 100_000
    """steps in the replay, a first-in-first-out ring (released)"""
    model_every: int = 1
    """steps per world-model update, counted over all environments (Table 10)"""
    agent_every: int = 1
    """steps per imagination, which `agent_updates` of the agent follow, counted over all environments (Table 10)"""
    acting_context: int = 16
    """newest steps the policy sees (Table 10, "environment context length"; `tiny`: 4, as many as imagination starts
    from)"""
    acting_latent: Literal["prior", "posterior"] = "prior"
    """`prior`: z is predicted from the past, the newest frame is not yet seen, as in imagination (released);
    `posterior`: z is encoded from the newest frame. DEVIATION in `tiny`, whose prior is weaker"""
    acting_at_end: Literal["keep", "clear"] = "keep"
    """whether the acting context survives the end of an episode (released: keep)"""
    acting_first: Literal["uniform", "zero"] = "uniform"
    """the action taken while the acting context is empty: uniformly random (released) or action 0 (`lean`)"""
    acting_uniform: float = 0.0
    """share of the policy's actions that are replaced by uniformly random ones (released: 0; `lean`: 0.01)"""
    recent_share: float = 0.0
    """share of the replay's windows whose start is drawn by how recent its episode is (released: 0; `lean`: 0.5)"""
    recent_base: float = 1.25
    """such a start weighs recent_base^(number of its episode - number of the newest) (`lean`)"""
    overlap: bool = False
    """DEVIATION: the games step while the updates run; the updates of a step then sample from a replay without that
    step, which is appended after them. Pays on a GPU, or where the games have threads of their own (--num-threads
    of at least 2, which needs as many games): one thread steps its games only once the updates are launched"""

    def __post_init__(self) -> None:
        _want(self.model_every >= 1, "--model-every of at least 1", self.model_every)
        _want(self.agent_every >= 1, "--agent-every of at least 1", self.agent_every)
        _want(self.acting_context >= 1, "--acting-context of at least 1", self.acting_context)
        _want(self.warmup >= 0, "--warmup of at least 0", self.warmup)
        for name in ("acting_uniform", "recent_share"):
            _want(0 <= getattr(self, name) <= 1, f"--{name.replace('_', '-')} in [0, 1]", getattr(self, name))
        _want(self.recent_base >= 1, "--recent-base of at least 1", self.recent_base)


@dataclass(frozen=True)
class Config:
    """One run. Nested groups are flat on the command line: `--gamma 0.9`, not `--agent.gamma`."""

    preset: str = "storm"
    """the preset these values started from"""
    game: str = "Pong"
    """Atari game, named as in ALE/<game>-v5"""
    env_id: str = ""
    """any gymnasium environment with pictures and Discrete actions, in the place of the game: its ID, or `module:ID`,
    which imports the module first; `--env` for short"""
    steps: int = 102_000
    """agent steps of 4 emulator frames each, over all environments (released: 102,000; paper: 100,000)"""
    scored_step: int | None = 100_000
    """the checkpoint that is evaluated unless another is named; None: the last (released: 100,000)"""
    seed: int = 1
    """seeds the environments, the weights and every draw"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:<i>`; auto takes a GPU where there is one"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """of matrix products; auto: bf16 where the device has it in hardware, fp32 elsewhere (released: bf16)"""
    kernels: Literal["auto", "reference", "triton"] = "auto"
    """what computes the hot paths: Triton's kernels or their PyTorch definitions; auto: Triton on a GPU. A CPU
    always runs the definitions"""
    threads: int = 0
    """CPU threads of PyTorch; 0: its own choice. `tiny` takes 1: a second one hardly helps so small
    operations, and makes each wait for both where other programs run"""
    compile: bool = False
    """on a GPU: capture the step as four CUDA graphs, act, world-model update, imagination and agent update, which the
    host then launches without looking inside. On a CPU: no graphs, but the fast paths that agree with the definitions;
    they always run there, so it changes nothing"""
    demonstration: str = "none"
    """`none`; `auto`, scripted for a game that has a script and else none; `scripted`, recorded on the spot
    by a scripted policy (Freeway); or a file.npz (sec. 5.3)"""
    demonstration_episodes: int = 1
    """episodes that a scripted demonstration has (STORM sec. 5.3: one trajectory). DEVIATION in `tiny`: 8, the 18
    crossings of one are too few examples of what earns reward"""
    checkpoint_every: int = 2500
    """steps between checkpoints (sec. 4.2)"""
    log_every: int = 100
    """steps between two rows of metrics"""
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    imagine: ImagineConfig = field(default_factory=ImagineConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _want(self.steps >= 1, "--steps of at least 1", self.steps)
        _want(self.threads >= 0, "--threads of at least 0", self.threads)
        _want(0 <= self.seed < 2**31, "--seed in [0, 2**31)", self.seed)
        wanted = "--demonstration-episodes of at least 1"
        _want(self.demonstration_episodes >= 1, wanted, self.demonstration_episodes)
        _want(self.log_every >= 1, "--log-every of at least 1", self.log_every)
        _want(self.checkpoint_every >= 1, "--checkpoint-every of at least 1", self.checkpoint_every)
        longest = self.imagine.context + self.imagine.horizon
        wanted = "--context plus --horizon of at most --max-positions"
        _want(longest <= self.model.max_positions, wanted, longest)
        wanted = "--acting-context of at most --max-positions"
        _want(self.loop.acting_context <= self.model.max_positions, wanted, self.loop.acting_context)
        rows = self.loop.capacity // self.env.num_envs
        needed = max(self.model.length, self.imagine.context)
        _want(rows >= needed, f"--capacity of at least {needed} steps per environment, a window", self.loop.capacity)
        filled = self.loop.warmup // self.env.num_envs
        wanted = f"--warmup of at least {needed} steps per environment, a whole window"
        _want(filled >= needed, wanted, f"{self.loop.warmup} over {self.env.num_envs}")
        if self.imagine.context_source == "model_batch":
            _want(
                self.imagine.context <= self.model.length,
                "--context of at most --length",
                self.imagine.context,
            )
            wanted = "--agent-every a multiple of --model-every where contexts come from the model's batch"
            _want(self.loop.agent_every % self.loop.model_every == 0, wanted, self.loop.agent_every)
        wanted = "--imagine-batch that --agent-updates divides"
        _want(self.imagine.imagine_batch % self.agent.agent_updates == 0, wanted, self.imagine.imagine_batch)

    @property
    def env_name(self) -> str:
        """What is played: the environment's ID, or the game."""
        return self.env_id or self.game

    @property
    def atari_game(self) -> str | None:
        """The game, whose scores and script are known; None where another environment is played."""
        return None if self.env_id else self.game


def _paper() -> Config:
    storm = Config()
    return replace(
        storm,
        preset="paper",
        steps=100_000,
        scored_step=None,
        model=replace(storm.model, free_nats_per="step"),
        agent=replace(storm.agent, bootstrap="next", critic_target="value", return_scale="batch"),
    )


def _tiny() -> Config:
    return Config(
        preset="tiny",
        game="Freeway",
        steps=9_000,
        scored_step=None,
        threads=1,
        demonstration="auto",
        demonstration_episodes=8,
        checkpoint_every=3_000,
        log_every=200,
        env=EnvConfig(num_envs=4),
        model=ModelConfig(
            stem_channels=16,
            latents=32,
            classes=16,
            width=256,
            layers=1,
            heads=4,
            batch=1,
            demonstration_batch=3,
            length=32,
            reward_weight=100.0,
            reconstruction_weight=20.0,
            dynamics_weight=3.0,
            posterior_norm=3.0,
            center_frames=True,
            zero_outputs=True,
            model_lr=1e-3,
        ),
        imagine=ImagineConfig(imagine_batch=96, imagine_demonstration_batch=0, context=4, context_source="model_batch"),
        agent=AgentConfig(agent_width=128, agent_lr=3e-4, entropy=1e-4, agent_start=1200, critic_warmup=50),
        loop=LoopConfig(model_every=3, agent_every=6, acting_context=4, acting_latent="posterior"),
    )


def _lean() -> Config:
    """The authors' later recipe (OC-STORM's configuration on pixels): half of the arithmetic for the same scores.

    Published per-seed scores over 26 games: IQM 0.557, of STORM 0.561. DEVIATION: one update a step, where the authors
    catch up in a burst at each episode's end, which neither a captured step nor overlapping games would go with.
    """
    storm = Config()
    return replace(
        storm,
        preset="lean",
        env=replace(storm.env, frame_cap=20_000, noops=30),
        model=replace(storm.model, conv_activation="silu", width=256, heads=4, batch=32, length=32),
        imagine=replace(storm.imagine, imagine_batch=2048, imagine_demonstration_batch=0, context=4),
        agent=replace(
            storm.agent,
            agent_layers=3,
            agent_activation="silu",
            agent_updates=4,
            policy_loss="ratio",
            entropy=1e-3,
        ),
        loop=replace(
            storm.loop,
            agent_every=4,
            acting_context=8,
            acting_latent="posterior",
            acting_at_end="clear",
            acting_first="zero",
            acting_uniform=0.01,
            recent_share=0.5,
        ),
    )


def _plus() -> Config:
    """`lean` with changes that others found to help: learned scales of the losses (`loss_balance`), and in imagination
    V(s_{t+1}) in the lambda-return and ends that count by their probability, both as in DV3. Not scored yet.
    """
    lean = _lean()
    return replace(
        lean,
        preset="plus",
        model=replace(lean.model, loss_balance="harmonised"),
        agent=replace(lean.agent, bootstrap="next", imagined_end="weighted"),
    )


PRESETS = {"storm": Config, "paper": _paper, "tiny": _tiny, "lean": _lean, "plus": _plus}


def preset(name: str) -> Config:
    """The configuration called `name`. Raises InputError for an unknown name."""
    if name not in PRESETS:
        raise InputError(f"want a preset of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]()


_ADDED = {
    "env_id",
    "noops",
    "conv_activation",
    "loss_balance",
    "agent_layers",
    "agent_activation",
    "agent_updates",
    "policy_loss",
    "acting_first",
    "acting_uniform",
    "recent_share",
    "recent_base",
}
"""Fields that saved configurations of earlier versions lack"""


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, for config.json."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration that `to_dict` wrote. Raises InputError for fields that do not exist or are missing.

    Fields of `_ADDED` may be missing: earlier versions did not have them, and did what their defaults do.
    """
    groups = {f.name: f.default_factory for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}

    def build(kind: Any, given: dict[str, Any]) -> Any:
        names = {f.name for f in dataclasses.fields(kind)}
        wrong = ", ".join(sorted((names ^ set(given)) - (_ADDED & names)))
        if wrong:
            raise InputError(
                f"want the fields of {kind.__name__} in the saved configuration; wrong or missing: {wrong}"
            )
        return kind(**{k: build(groups[k], v) if k in groups else v for k, v in given.items()})

    config: Config = build(Config, values)
    return config


def flat(config: Config) -> dict[str, Any]:
    """Every field by its name on the command line, groups dissolved."""
    values = to_dict(config)
    groups = {name: values.pop(name) for name in [k for k, v in values.items() if isinstance(v, dict)]}
    return values | {k: v for group in groups.values() for k, v in group.items()}
