"""What CUDA graphs ask of the four phases, held on a CPU; and on a GPU the graphs themselves."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from storm_fast.config import Config
from storm_fast.data import demonstration
from storm_fast.data.replay import Replay
from storm_fast.engine import build, scripted
from storm_fast.engine.capture import HostReadError, Watch, _side_stream, naming, unchanged, uncollected
from storm_fast.engine.metrics import MeanMetrics
from storm_fast.engine.phases import Phases
from storm_fast.engine.precision import Precision, choose
from storm_fast.engine.training import new_training
from storm_fast.envs import Collector, GymCollector
from storm_fast.model import imagine
from storm_fast.model.encoder import Encoder
from storm_fast.model.past import Reread
from storm_fast.model.policy import Policy
from storm_fast.runs.run import Run
from storm_fast.train import main, train
from tests.small import EXACT, rows, small_config, weights

PHASES = ("act", "model", "imagine", "agent")


@contextmanager
def definitions() -> Iterator[None]:
    """Contexts encoded and imagined by the slow twins of what a step runs."""
    with mock.patch.object(Encoder, "folded", Encoder.forward), mock.patch.object(imagine, "Cached", Reread):
        yield


def started(config: Config, steps: int = 40) -> Phases:
    """The phases of a run whose replay holds some steps and whose policy has seen some."""
    precision = choose(config.device, config.precision)
    build.prepare(config, precision)
    t = new_training(config, precision)
    N, g = t.collector.num_envs, torch.Generator().manual_seed(5)
    played = None
    if config.demonstration != "none":
        arrays = scripted.record("Freeway", replace(config.env, frame_cap=200), 1)
        played = demonstration.to_replay(arrays, precision.device)
    phases = Phases(config, t, played, precision)
    for _ in range(steps):
        frames_NYXP = torch.randint(256, phases.seen_NYXP.shape, generator=g, dtype=torch.uint8)
        phases.see(frames_NYXP)
        phases.explore()
        t.policy.remember(phases.seen_NYXP, phases.action_N)
        end_N = torch.rand(N, generator=g) < 0.1
        number_N = torch.from_numpy(t.episodes.number_N.copy())
        t.replay.append(frames_NYXP, phases.action_N, torch.rand(N, generator=g), end_N, number_N)
        t.episodes.end(end_N.numpy())
    return phases


def step(phases: Phases) -> None:
    """Every phase once, as training calls them."""
    phases.act()
    phases.update_model()
    phases.imagine()
    phases.update_agent()


def everything(phases: Phases) -> list[torch.Tensor]:
    """Copies of all that phases change, and a draw that comes after."""
    t = phases._t
    after = torch.Generator(phases.seen_NYXP.device)
    after.set_state(t.generator.get_state())
    draw = torch.rand(3, generator=after, device=after.device)
    random = [torch.cuda.get_rng_state()] if after.device.type == "cuda" else [torch.get_rng_state()]
    return [*(tensor.detach().clone() for tensor in phases.state()), draw, *random]


CONFIGS: dict[str, Callable[[Config], Config]] = {
    "tiny": lambda c: c,
    "bf16": lambda c: replace(c, precision="bf16"),
    "demonstration": lambda c: replace(c, game="Freeway", demonstration="scripted"),
    "replay contexts, prior": lambda c: replace(
        c,
        imagine=replace(c.imagine, context_source="replay"),
        loop=replace(c.loop, acting_latent="prior", acting_at_end="clear"),
        model=replace(c.model, posterior_norm=0.0, center_frames=False, free_nats_per="step"),
    ),
    "paper's agent": lambda c: replace(
        c,
        agent=replace(
            c.agent, bootstrap="next", critic_target="value", return_scale="batch", imagined_end="weighted",
            agent_state="reconstruction",
        ),
    ),
    "storm's path": lambda c: replace(
        c,
        game="Freeway",
        demonstration="scripted",
        env=replace(c.env, num_envs=1),
        imagine=replace(c.imagine, context_source="replay", imagine_demonstration_batch=3),
        loop=replace(c.loop, acting_latent="prior"),
        model=replace(c.model, posterior_norm=0.0, center_frames=False, zero_outputs=False),
    ),
    "lean's path": lambda c: replace(
        c,
        env=replace(c.env, num_envs=1, noops=4),
        imagine=replace(c.imagine, context_source="replay", imagine_demonstration_batch=0, imagine_batch=16),
        agent=replace(
            c.agent, agent_layers=3, agent_activation="silu", agent_updates=4, policy_loss="ratio", critic_warmup=0
        ),
        loop=replace(
            c.loop, acting_at_end="clear", acting_first="zero", acting_uniform=0.5, recent_share=0.5, agent_every=4
        ),
        model=replace(
            c.model, conv_activation="silu", posterior_norm=0.0, center_frames=False, zero_outputs=False
        ),
    ),
    "plus's losses": lambda c: replace(
        c,
        model=replace(c.model, loss_balance="harmonised"),
        agent=replace(c.agent, bootstrap="next", imagined_end="weighted"),
    ),
}  # fmt: skip


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sum has one order on a GPU, or two runs would part for good at the first class that is drawn otherwise.

    cuBLAS's part of this is in conftest.py; the kernels have no atomic additions.
    """
    prepare = build.prepare

    def prepared(config: Config, precision: Precision) -> None:
        prepare(config, precision)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    monkeypatch.setattr(build, "prepare", prepared)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_phase_reads_the_device_and_each_has_the_same_shapes_at_every_call(name: str) -> None:
    phases = started(CONFIGS[name](small_config()))
    step(phases)
    for phase in PHASES:
        call = getattr(phases, f"run_{phase}")
        seen = []
        for _ in range(2):
            with Watch() as watch:
                call()
            seen.append(watch.shapes)
        assert len(seen[0]) > 10
        assert seen[0] == seen[1], phase


@pytest.mark.parametrize("at_end", ["keep", "clear"])
def test_what_a_step_does_around_its_updates_does_not_read_the_device_either(at_end: str) -> None:
    small = small_config()
    phases = started(replace(small, loop=replace(small.loop, acting_at_end=at_end)))
    N, length_N = small.env.num_envs, phases._t.policy.length_N
    obs_NYXP, reward_N = torch.zeros_like(phases.seen_NYXP), np.ones(N, np.float32)
    over_N = np.arange(N) == 0
    seen = []
    for _ in range(2):
        with Watch() as watch:
            phases.see(obs_NYXP)
            phases.explore()
            phases.act()
            phases.append(reward_N, over_N)
            phases.end_episodes(over_N)
        seen.append(watch.shapes)
        assert length_N.tolist() == [0 if at_end == "clear" else small.loop.acting_context, small.loop.acting_context]
    assert seen[0] == seen[1]
    assert phases._t.replay.reward[phases._t.replay.appended - 1].tolist() == [1.0] * N


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.ones(())),
        lambda x: x + torch.tensor([1.0, 2.0]),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.nn.functional.one_hot(x.long(), 9),
        lambda x: x.to("meta"),
        lambda x: torch.empty(3, device="meta")[x.long()],
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
    ],
)
def test_what_makes_the_host_wait_is_refused_and_named(fault: Callable[[Any], object]) -> None:
    x = torch.arange(2.0)
    with pytest.raises(HostReadError, match=r"got (aten|Tensor)\."), Watch():
        fault(x)
    with Watch() as watch:
        torch.relu(x)
    assert watch.last == "aten.relu.default"


def test_the_shapes_of_all_results_are_seen() -> None:
    x = torch.arange(6.0)
    with Watch() as watch:
        x.view(2, 3).sort(dim=1)
        x.split([2, 4])
        torch._foreach_add([x, x[:1]], 1.0)
    assert watch.shapes == [
        ("view.default", (2, 3)),
        ("sort.default", (2, 3)),
        ("sort.default", (2, 3)),
        ("split_with_sizes.default", (2,)),
        ("split_with_sizes.default", (4,)),
        ("slice.Tensor", (1,)),
        ("_foreach_add.Scalar", (6,)),
        ("_foreach_add.Scalar", (1,)),
    ]


@pytest.mark.parametrize(
    ("fault", "operation"),
    [
        (lambda x: x.item(), r"Tensor\.item"),
        (lambda x: x.exp().sum().tolist(), r"Tensor\.tolist"),
        (lambda x: x.exp().nonzero(), r"aten\.nonzero\.default"),
        (lambda x: x.expand(2).dot(x.expand(3)), r"aten\.dot\.default"),
    ],
)
def test_the_error_of_a_phase_names_the_phase_and_the_operation_that_cannot_be_recorded(
    fault: Callable[[Tensor], object], operation: str
) -> None:
    phases = started(small_config())
    phases._t.means.add = lambda _, metrics: fault(metrics["total"])  # type: ignore[method-assign,assignment]
    wanted = rf"`model` is not, at {operation}: .+ \(without --compile the step runs eagerly\)"
    with pytest.raises(RuntimeError, match=wanted), naming("model") as watch, watch:
        phases.run_model()


@pytest.mark.parametrize("was_on", [True, False])
def test_no_cycle_is_collected_while_a_graph_is_recorded(was_on: bool) -> None:
    def cycle() -> weakref.ref[Callable[[], None]]:
        def old() -> None:
            old()

        return weakref.ref(old)

    try:
        if not was_on:
            gc.disable()
        before = cycle()
        with suppress(KeyError), uncollected():
            assert before() is None
            within = cycle()
            junk = [[] for _ in range(100_000)]  # far beyond the number of objects that sets the collector off
            assert len(junk) == 100_000
            assert within() is not None
            raise KeyError
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_each_device_has_a_stream_of_its_own_to_record_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: [device])
    first, second = _side_stream(97), _side_stream(98)
    assert (first, second) == ([97], [98])
    assert _side_stream(97) is first


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_rehearsal_leaves_no_trace(steps_before: int) -> None:
    rehearsed, twin = started(small_config()), started(small_config())
    for phases in (rehearsed, twin):
        torch.manual_seed(3)
        for _ in range(steps_before):
            step(phases)
    before = torch.get_rng_state()
    with unchanged(rehearsed.state, [rehearsed._t.generator, torch.default_generator]):
        for _ in range(3):
            for phase in PHASES:
                getattr(rehearsed, f"run_{phase}")()
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)
    for phases in (rehearsed, twin):
        torch.manual_seed(4)
        step(phases)
        step(phases)
    for a, b in zip(everything(rehearsed), everything(twin), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["tiny", "replay contexts, prior", "lean's path"])
def test_fifty_steps_of_training_equal_those_of_the_definitions(name: str) -> None:
    runs, actions = [], []
    for slow in (False, True):
        phases = started(CONFIGS[name](small_config()))
        torch.manual_seed(3)
        with definitions() if slow else nullcontext():
            for _ in range(50):
                step(phases)
                actions.append(phases.action_N.tolist())
        runs.append(everything(phases))
    # The same draws decide the same classes, since no rounding here moves a probability across one.
    assert actions[:50] == actions[50:]
    for a, b in zip(*runs, strict=True):
        # Rounding of 1e-7 a step, which Adam's division by small moments enlarges and fifty updates add up.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "replay contexts, prior"])
def test_each_of_fifty_steps_in_bf16_agrees_with_the_definitions_in_float32(name: str) -> None:
    config = CONFIGS[name](small_config())
    config = replace(config, model=replace(config.model, dropout=0.0))  # whose masks are drawn by dtype
    fast, slow = started(replace(config, precision="bf16", compile=True)), started(config)
    same: dict[str, list[Tensor]] = {"actions": [], "latents": []}
    gradients_off: dict[str, list[float]] = {"model": [], "agent": []}
    losses_off: list[float] = []
    for _ in range(50):
        for phase in PHASES:
            # Both begin each phase with the same: a class that is drawn otherwise would part them for good.
            with torch.no_grad():
                # Of the fast ones the copies in bf16 come last; float32 has none.
                for theirs, ours in zip(slow.state(), fast.state(), strict=False):
                    theirs.copy_(ours)
            slow._t.generator.set_state(fast._t.generator.get_state())
            if fast._context is not None:
                slow._context = fast._context._replace(z_BCZ=fast._context.z_BCZ.float())
            if fast._trajectory is not None:
                slow._trajectory = fast._trajectory._replace(state_BSF=fast._trajectory.state_BSF.float())
            before = moments(fast, phase)
            getattr(fast, f"run_{phase}")()
            with definitions():
                getattr(slow, f"run_{phase}")()
            if phase == "act":
                same["actions"].append(fast.action_N == slow.action_N)
            elif phase == "imagine":
                first = [first_classes(phases, config.model.classes) for phases in (fast, slow)]
                same["latents"].append(first[0] == first[1])
            else:
                got, want = (moments(phases, phase) - 0.9 * before for phases in (fast, slow))
                gradients_off[phase].append(float((got - want).norm() / want.norm()))
                metrics, truth = (phases._t.means.pop() for phases in (fast, slow))
                losses_off += [abs(metrics[k] - truth[k]) / abs(truth[k]) for k in truth if k.endswith("/total")]
    # A product in bf16 is off by 2**-9 of itself, so that a class in a thousand has its border between the two, and the
    # gradient of a few hundred numbers, among which one is decided otherwise now and then, by some percent.
    shares = {name: float(torch.stack(equal).float().mean()) for name, equal in same.items()}
    assert min(shares.values()) > 0.99, shares
    for phase, median in (("model", 0.01), ("agent", 0.03)):
        assert np.median(gradients_off[phase]) < median
        assert np.max(gradients_off[phase]) < 0.3
    assert np.median(losses_off) < 2e-3
    assert np.max(losses_off) < 0.1


def moments(phases: Phases, phase: str) -> Tensor:
    """Adam's moving mean of the gradient of a phase's update, one vector; 0 before the first and for other phases."""
    if phase not in ("model", "agent"):
        return torch.zeros(())
    adam = getattr(phases._t, f"{phase}_optimizer").adam
    return torch.cat([torch.zeros(1), *(state["exp_avg"].flatten() for state in adam.state.values())])


def first_classes(phases: Phases, C: int) -> Tensor:
    """The classes of the latents that the last rollout began with."""
    assert phases._trajectory is not None
    G = phases._t.world_model.config.latents
    return phases._trajectory.state_BSF[:, 0, : G * C].unflatten(1, (G, C)).argmax(-1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_one_phase_leaves_for_the_next_outlives_the_others(device: str) -> None:
    phases = started(replace(small_config(), device=device, compile=True))
    step(phases)
    step(phases)

    def left() -> list[Tensor]:
        assert phases._context is not None
        assert phases._trajectory is not None
        return [*phases._context, *phases._trajectory]

    before = [tensor.clone() for tensor in left()]
    phases.update_model()
    context, trajectory = left()[:2], left()[2:]
    assert not torch.equal(before[0], context[0])
    assert all(map(torch.equal, trajectory, before[2:]))
    before[:2] = [tensor.clone() for tensor in context]
    phases.imagine()
    assert not torch.equal(before[2], left()[2])
    before[2:] = [tensor.clone() for tensor in left()[2:]]
    phases.act()
    phases.update_agent()
    assert all(map(torch.equal, left(), before))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order in which actions are sent, windows sampled, results received and steps appended, a letter each."""
    order: list[str] = []

    def spy(owner: type, name: str, letter: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            order.append(letter)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    collector = {"native": Collector, "gym": GymCollector}[EXACT]
    spy(collector, "send", "S")
    spy(collector, "recv", "R")
    spy(Replay, "sample", "u")
    spy(Replay, "append", "A")
    return order


@pytest.mark.parametrize(("overlap", "turn"), [(False, "SRAu"), (True, "SuRA")])
def test_with_overlap_the_updates_run_between_sending_and_receiving(
    tmp_path: Path, calls: list[str], overlap: bool, turn: str
) -> None:
    small = small_config(steps=48)
    config = replace(small, loop=replace(small.loop, overlap=overlap))
    assert train(Run(tmp_path / "run", config), False)
    warmup = small.loop.warmup // small.env.num_envs
    assert "".join(calls) == warmup * "SRA" + 8 * turn
    assert rows(tmp_path / "run", "metrics.jsonl")[-1]["step"] == 48
    assert len(weights(tmp_path / "run", 48)) > 10


def test_actions_reach_the_games_as_they_were_drawn() -> None:
    phases = started(small_config())
    for call in (phases.explore, phases.act, phases.act):
        host_N = call()
        assert host_N.dtype == np.int64
        assert host_N.tolist() == phases.action_N.tolist()


def on_gpu(config: Config, **changes: Any) -> Config:
    """A small configuration with Triton's kernels on a GPU."""
    return replace(config, device="cuda", **changes)


def assert_alike(a: Iterable[Tensor], b: Iterable[Tensor], precision: str = "fp32") -> None:
    """What two runs of the same draws changed: what counts and draws exactly, numbers within a tolerance."""
    # The same operations on the same numbers: where an algorithm still sums in another order, fifty updates enlarge
    # roundings of 6e-8 or, in bf16, of 4e-3 as the test of the definitions above says.
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for x, y in zip(a, b, strict=True):
        if x.is_floating_point():
            assert (x - y).norm() <= tolerance * (x.norm() + 1e-3)
        else:  # frames, actions, lengths, counts, random states
            assert torch.equal(x, y)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_training_equals_eager_training(name: str) -> None:
    config = on_gpu(CONFIGS[name](small_config()))
    runs = []
    for compile in (False, True):
        phases = started(replace(config, compile=compile))
        torch.manual_seed(3)  # dropout's generator, which the two share
        for _ in range(50):
            step(phases)
        runs.append(everything(phases))
    assert_alike(*runs, config.precision)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_eager_acting_between_replays_leaves_a_captured_run_as_it_would_be() -> None:
    config = on_gpu(small_config(), compile=True)
    runs = []
    for beside in (False, True):
        phases = started(config)
        torch.manual_seed(3)
        t, device = phases._t, phases.seen_NYXP.device
        other = Policy(t.world_model, t.agent, config.loop, 3, device)
        draws = torch.Generator(device).manual_seed(9)
        for _ in range(10):
            for call in (phases.act, phases.update_model, phases.imagine, phases.update_agent):
                call()
                if beside:  # as evaluation does, with other sizes; and all free memory is written to
                    t.world_model.eval()
                    obs_NYXP = torch.randint(256, (3, *t.spec.frame), dtype=torch.uint8, generator=draws, device=device)
                    with phases._precision.autocast():
                        other.remember(obs_NYXP, other.act(obs_NYXP, draws))
                    del obs_NYXP
                    for size in (2**8, 2**12, 2**16, 2**20, 2**24):
                        torch.full((size,), float("nan"), device=device)
        runs.append(everything(phases))
    assert_alike(*runs, config.precision)


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_a_captured_run_stopped_and_resumed_goes_on_as_one_never_stopped(tmp_path: Path) -> None:
    config = on_gpu(small_config(), compile=True)
    assert train(Run(tmp_path / "whole", config), False)
    stopped = tmp_path / "stopped"
    assert train(Run(stopped, replace(config, steps=36)), False)  # before imagination and the agent begin
    for steps in (70, 96):
        assert main(["--resume", str(stopped), "--steps", str(steps)]) == 0
    a, b = (Run.open(run).load_state(96)[0] for run in (tmp_path / "whole", stopped))
    for name in ("step", "model_updates", "replay_rows"):
        assert a[name] == b[name], name
    assert a["random"]["device"] == b["random"]["device"] == "cuda"
    for name in ("draws", "cpu", "cuda"):
        assert torch.equal(a["random"][name], b["random"][name]), name
    assert rows(tmp_path / "whole", "episodes.jsonl") == rows(stopped, "episodes.jsonl")
    assert_alike(weights(tmp_path / "whole", 96).values(), weights(stopped, 96).values())


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(("overlap", "at_end"), [(False, "keep"), (True, "clear")])
def test_between_two_rows_of_its_log_a_captured_run_waits_for_its_actions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool, at_end: Literal["keep", "clear"]
) -> None:
    small = on_gpu(small_config(), compile=True, checkpoint_every=96)
    config = replace(small, loop=replace(small.loop, overlap=overlap, acting_at_end=at_end))
    see, pop = Phases.see, MeanMetrics.pop
    strict_turns = []

    def strictly(self: Phases, obs_NYXP: Tensor) -> None:
        if self._t.step >= 56:  # all four phases are captured
            torch.cuda.set_sync_debug_mode("error")  # waiting for an event, as for the actions, it lets pass
            strict_turns.append(self._t.step)
        see(self, obs_NYXP)

    def freely(self: MeanMetrics) -> dict[str, float]:
        torch.cuda.set_sync_debug_mode("default")
        return pop(self)

    monkeypatch.setattr(Phases, "see", strictly)
    monkeypatch.setattr(MeanMetrics, "pop", freely)
    try:
        assert train(Run(tmp_path / "run", config), False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict_turns == list(range(56, 96, 2))
    assert max(row["step"] for row in rows(tmp_path / "run", "episodes.jsonl")) > 56


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_captured_step_draws_anew_never_waits_and_keeps_to_its_memory() -> None:
    phases = started(on_gpu(small_config(), compile=True))
    step(phases)
    first = everything(phases)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            step(phases)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(first[-2], everything(phases)[-2])
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(10_000):
        step(phases)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == held


@pytest.mark.gpu
def test_what_cannot_be_captured_is_an_error_that_names_the_operation() -> None:
    phases = started(on_gpu(small_config(), compile=True))
    phases._t.means.add = lambda _, metrics: metrics["total"].item()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"`model` is not, at Tensor\.item"):
        phases.update_model()
