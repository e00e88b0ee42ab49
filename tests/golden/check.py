"""Compare storm_fast with numbers recorded from the released code: `python tests/golden/check.py PREFIX`.

Reads PREFIX.npz and PREFIX.json (inputs, draws, outputs, losses, norms of gradients and of optimiser steps; any
sizes), computes the same with the `storm` preset in float32, prints a line for each quantity with its largest error,
and exits with status 1 when one lies beyond tolerance. Weights are not stored: they follow from the parameters' names
(`fill`).

What computes is chosen by --device, --kernels (Triton's run on a CPU too, in its interpreter, which for Triton 3.6 asks
for a NumPy before 2.4) and --layout of images and convolution weights; without these the definitions on the CPU.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, it finds the checkout it lies in

from storm_fast.config import AgentConfig, Config, ModelConfig
from storm_fast.data.replay import Batch
from storm_fast.engine import build
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import Precision
from storm_fast.import_released import agent_names, renamed, world_model_names
from storm_fast.kernels import backend, categorical, twohot
from storm_fast.kernels.lambda_return import lambda_return
from storm_fast.model.agent import Agent, Trajectory
from storm_fast.model.imagine import Context, Uniforms, rollout
from storm_fast.model.world_model import WorldModel

# Tolerance: |difference| <= first * largest |recorded| + second. Not of each element's own size: where large terms
# cancel, what is left has the rounding of those terms.
ARRAY = (1e-4, 1e-5)
LOSS = (1e-4, 1e-7)
NORM = (1e-3, 1e-9)
EXACT = (0.0, 0.0)


@dataclass(frozen=True)
class Form:
    """What computes."""

    device: str = "cpu"
    kernels: Literal["reference", "triton"] = "reference"
    layout: Literal["contiguous", "channels_last"] = "contiguous"


@dataclass(frozen=True)
class Line:
    """One quantity compared."""

    name: str
    error: float  # largest |difference|
    share: float  # largest |difference| / tolerance; at most 1 to pass

    @property
    def passed(self) -> bool:
        """Whether the quantity lies within tolerance; NaN does not."""
        return self.share <= 1


def compare(name: str, got: Any, recorded: Any, tolerance: tuple[float, float]) -> Line:
    """The largest error of `got`, also relative to its tolerance; shapes must agree."""
    got = np.asarray(got.detach().cpu() if isinstance(got, Tensor) else got, dtype=np.float64)
    recorded = np.asarray(recorded, dtype=np.float64)
    if got.shape != recorded.shape:
        raise ValueError(f"{name}: want shape {recorded.shape}; got {got.shape}")
    difference = np.abs(got - recorded)
    allowed = tolerance[0] * np.abs(recorded).max(initial=0.0) + tolerance[1]
    share = np.where(difference == 0, 0, difference / max(allowed, 1e-300))
    return Line(name, float(difference.max()), float(share.max()))


def fill(prefix: str, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The released code's parameters, made from their names alone."""
    state = {}
    for name, shape in shapes.items():
        seed = zlib.crc32(f"{prefix}.{name}".encode())
        z = np.random.RandomState(seed).standard_normal(shape)
        if name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif name.endswith("running_mean"):
            z = 0.05 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z if name.endswith("weight") else 0.05 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(z.astype(np.float32))
    return state


def norms(module: nn.Module, names: dict[str, tuple[str, ...]], value: Any) -> dict[str, float]:
    """L2 norm of `value(parameter)` under each released name."""
    found = {}
    for ours, parameter in module.named_parameters():
        parts = names[ours]
        for part, piece in zip(parts, value(ours, parameter).chunk(len(parts)), strict=True):
            found[part] = float(piece.double().norm())
    return found


DEFINITIONS = Form()


class Golden:
    """The recording, and our modules filled as it says."""

    def __init__(self, prefix: Path, form: Form) -> None:
        self.form = form
        self.array = dict(np.load(prefix.with_suffix(".npz")))
        self.number = json.loads(prefix.with_suffix(".json").read_text())
        dims = self.number["dims"]
        self.config = replace(
            Config(),
            model=ModelConfig(width=dims["D"], heads=dims["heads"], layers=dims["layers"], dropout=0.0),
            agent=AgentConfig(agent_width=self.number["agent_parameters"]["actor.0.weight"][0]),
        )
        self.num_actions = dims["actions"]
        self.model_names, self.agent_names = world_model_names(dims["layers"]), agent_names()

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A recorded input."""
        x = torch.from_numpy(self.array[name]).to(self.form.device)
        return x if dtype is None else x.to(dtype)

    def world_model(self) -> WorldModel:
        """Filled anew."""
        model = WorldModel(self.config.model, self.num_actions, (64, 64, 3))
        state = renamed(fill("world_model", self.number["world_model_parameters"]), self.model_names)
        counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
        model.load_state_dict(state | counters)
        if self.form.layout == "channels_last":
            model.use_channels_last()
        return model.to(self.form.device)

    def agent(self) -> Agent:
        """Filled anew."""
        c = self.config.model
        agent = Agent(self.config.agent, c.latents * c.classes + c.width, self.num_actions, c.bins)
        state = renamed(fill("agent", self.number["agent_parameters"]), self.agent_names)
        agent.load_state_dict(state | {"return_low": torch.zeros(()), "return_high": torch.zeros(())})
        return agent.to(self.form.device)

    def output(self, name: str, got: Tensor, tolerance: tuple[float, float] = ARRAY) -> Line:
        """Compare with array `<name>`, or with every k-th value where `<name>_strided` was recorded."""
        if name in self.array:
            return compare(name, got, self.array[name], tolerance)
        recorded = self.array[f"{name}_strided"]
        key = name.split("_out_")[1]
        stride = int(self.array[f"{key}_strided_stride"])
        flat = got.reshape(*recorded.shape[:-1], -1)[..., ::stride]
        return compare(f"{name}_strided", flat, recorded, tolerance)

    def numbers(self, key: str, got: dict[str, float], tolerance: tuple[float, float]) -> Iterator[Line]:
        """Compare with the JSON's dictionary `key`, which must be covered whole."""
        recorded = self.number[key]
        if set(recorded) != set(got):
            raise ValueError(f"{key}: want {sorted(set(recorded) ^ set(got))}")
        for name, value in recorded.items():
            yield compare(f"{key}: {name}", got[name], value, tolerance)


_GLOBAL = "<global norm before clipping>"


def check_world_model_update(golden: Golden, low_kl: bool) -> Iterator[Line]:
    """One update from the filled weights; with `low_kl`, both latent heads scaled by 0.02: free nats active."""
    model = golden.world_model().train()
    prefix = "world_model_low_kl" if low_kl else "world_model"
    if low_kl:
        with torch.no_grad():
            for head in (model.posterior, model.prior):
                head.weight.mul_(0.02)
                head.bias.mul_(0.02)
    batch = Batch(
        golden.tensor("wm_obs"),
        golden.tensor("wm_action", torch.int64),
        golden.tensor("wm_reward"),
        golden.tensor("wm_termination"),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    predicted = model(batch.obs_BTYXP, batch.action_BT, golden.tensor("wm_low_kl_uniform" if low_kl else "wm_uniform"))
    image_BTPYX = model.image(predicted.painted_NCYX).unflatten(0, predicted.end_logit_BT.shape)
    loss, metrics = model.loss(batch, predicted)
    optimizer = Optimizer(model, golden.config.model.model_lr, eps=1e-8, clip=golden.config.model.model_clip)
    optimizer.backward(loss)
    kept = norms(model, golden.model_names, lambda _, p: p.grad)
    kept[_GLOBAL] = float(optimizer.step())
    losses = {
        "reconstruction_loss": metrics["reconstruction"],
        "reward_loss": metrics["reward"],
        "termination_loss": metrics["end"],
        "dynamics_loss": metrics["dynamics"],
        "dynamics_real_kl_div": metrics["kl"],
        "representation_loss": metrics["representation"],
        "representation_real_kl_div": metrics["kl"],
        "total_loss": metrics["total"],
    }
    yield from golden.numbers(f"{prefix}_losses", {k: float(v) for k, v in losses.items()}, LOSS)
    yield from golden.numbers(f"{prefix}_gradient_norms", kept, NORM)
    if low_kl:
        return
    unimix = golden.config.model.unimix
    yield golden.output("wm_out_embedding", predicted.embedding_BTE)
    yield golden.output("wm_out_posterior_logits", categorical.probabilities(predicted.post_logits_BTGC, unimix).log())
    yield golden.output("wm_out_reconstruction", image_BTPYX)
    yield golden.output("wm_out_hidden", predicted.h_BTD)
    yield golden.output("wm_out_prior_logits", categorical.probabilities(predicted.prior_logits_BTGC, unimix).log())
    yield golden.output("wm_out_reward_logits", predicted.reward_logits_BTV)
    yield golden.output("wm_out_termination_logit", predicted.end_logit_BT)
    yield golden.output("wm_out_encoder_first_bn_running_mean_after", model.encoder.norms[0].running_mean)
    moved = norms(model, golden.model_names, lambda name, p: p.detach() - before[name])
    yield from golden.numbers("world_model_step_norms", moved, NORM)


def check_imagination(golden: Golden) -> Iterator[Line]:
    """One rollout from the filled weights."""
    trajectory = _imagined(golden)
    G, C = golden.config.model.latents, golden.config.model.classes
    z_BSZ, h_BSD = trajectory.state_BSF.split([G * C, golden.config.model.width], dim=-1)
    yield golden.output("im_out_latent_class", z_BSZ.unflatten(-1, (G, C)).argmax(-1), EXACT)
    yield golden.output("im_out_hidden", h_BSD)
    yield golden.output("im_out_action", trajectory.action_BT, EXACT)
    yield golden.output("im_out_reward", trajectory.reward_BT)
    yield golden.output("im_out_termination", trajectory.end_BT, EXACT)


def _imagined(golden: Golden) -> Trajectory:
    model, agent = golden.world_model().eval(), golden.agent().eval()
    with torch.no_grad():
        z_BCZ = model.encode(golden.tensor("im_obs"), golden.tensor("im_uniform_context_posterior"))
    start_BG, action_BT, prior_BTG = (
        golden.tensor(f"im_uniform_{name}") for name in ("start_prior", "action", "prior")
    )
    context = Context(z_BCZ, golden.tensor("im_action_context", torch.int64))
    return rollout(model, agent, context, Uniforms(start_BG, action_BT.T, prior_BTG.transpose(0, 1)))


def check_agent_update(golden: Golden, wide_returns: bool) -> Iterator[Line]:
    """One update on the imagined states and the recorded rewards; with `wide_returns`, S is above 1."""
    trajectory = _imagined(golden)._replace(
        reward_BT=golden.tensor("ag_reward"), end_BT=golden.tensor("ag_termination", torch.float32)
    )
    agent = golden.agent().train()
    prefix = "agent_wide_returns" if wide_returns else "agent"
    if wide_returns:
        agent.return_low.fill_(-3.0)
        agent.return_high.fill_(4.0)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    if not wide_returns:
        with torch.no_grad():
            value_BS = twohot.decode(agent.critic(trajectory.state_BSF))
            slow_BS = twohot.decode(agent.slow_critic(trajectory.state_BSF))
            logits_BSA = agent.actor(trajectory.state_BSF)
        c = golden.config.agent
        scan = (c.gamma, c.lam, c.bootstrap)
        rewards = (trajectory.reward_BT, trajectory.end_BT)
        yield golden.output("ag_out_value", value_BS)
        yield golden.output("ag_out_policy_logits", logits_BSA)
        yield golden.output("ag_out_lambda_return", lambda_return(*rewards, value_BS, *scan))
        yield golden.output("ag_out_slow_lambda_return", lambda_return(*rewards, slow_BS, *scan))
    loss, metrics = agent.loss(trajectory)
    optimizer = Optimizer(agent, golden.config.agent.agent_lr, eps=1e-5, clip=golden.config.agent.agent_clip)
    optimizer.backward(loss)
    none = torch.zeros(1)
    kept = norms(agent, golden.agent_names, lambda _, p: none if p.grad is None else p.grad)
    kept = {name: norm for name, norm in kept.items() if not name.startswith("slow_critic")}
    kept[_GLOBAL] = float(optimizer.step())
    agent.update_slow_critic()
    losses = {
        "policy_loss": metrics["policy"],
        "value_loss": metrics["value"],
        "entropy_loss": metrics["entropy"],
        "S": metrics["return_spread"],
        "norm_ratio": metrics["return_scale"],
        "total_loss": metrics["total"],
    }
    yield from golden.numbers(f"{prefix}_losses", {k: float(v) for k, v in losses.items()}, LOSS)
    yield from golden.numbers(f"{prefix}_gradient_norms", kept, NORM)
    if not wide_returns:
        moved = norms(agent, golden.agent_names, lambda name, p: p.detach() - before[name])
        yield from golden.numbers("agent_step_norms", moved, NORM)


def check(prefix: Path, form: Form = DEFINITIONS) -> Iterator[Line]:
    """Every quantity of the recording."""
    golden = Golden(prefix, form)
    build.prepare(replace(golden.config, kernels="reference"), Precision(torch.device(form.device), torch.float32))
    with backend.using(form.kernels):
        yield from check_world_model_update(golden, low_kl=False)
        yield from check_world_model_update(golden, low_kl=True)
        yield from check_imagination(golden)
        yield from check_agent_update(golden, wide_returns=False)
        yield from check_agent_update(golden, wide_returns=True)


def main(argv: list[str]) -> int:
    """Print a line for each quantity; 0 when all are within tolerance, 1 when not. SystemExit 2 without a recording."""
    parser = argparse.ArgumentParser(prog="python tests/golden/check.py")
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="of PREFIX.npz and PREFIX.json")
    parser.add_argument("--device", default=Form.device)
    parser.add_argument("--kernels", choices=("reference", "triton"), default=Form.kernels)
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default=Form.layout)
    chosen = parser.parse_args(argv)
    if not chosen.prefix.with_suffix(".npz").exists():
        parser.error(f"{chosen.prefix}.npz does not exist")
    if chosen.device == "cpu" and chosen.kernels == "triton":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which happens at the first kernel
    failed = count = 0
    for line in check(chosen.prefix, Form(chosen.device, chosen.kernels, chosen.layout)):
        count += 1
        failed += not line.passed
        print(f"{'ok  ' if line.passed else 'FAIL'} {line.error:9.2e} {line.share:8.1%} of tolerance  {line.name}")
    print(f"{count} quantities, {failed} beyond tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
