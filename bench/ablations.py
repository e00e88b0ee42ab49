"""What each of a CPU's fast paths brings: a training step at full size with one of them taken away at a time.

`python -m bench.ablations [ROUNDS]` prints a Markdown table: medians of milliseconds, and of what a step takes over the
whole set's step of the same round. The two run in turn, each in a process of its own. `--compile`'s own subject, CUDA
graphs, is bench_step.py's.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.instrument.apart import Apart, Calls
from bench.instrument.ours import Ours
from storm_fast.config import preset
from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.model.encoder import Encoder
from storm_fast.model.onehot import OneHotLinear
from storm_fast.model.transformer import KVCache, Transformer
from storm_fast.model.world_model import WorldModel

PHASES = ("model", "imagine", "agent")


def unfolded() -> AbstractContextManager[Any]:
    """Batch normalisation behind its convolution wherever running statistics serve."""
    return mock.patch.object(Encoder, "folded", Encoder.forward)


@contextmanager
def uncached() -> Iterator[None]:
    """No cache of keys and values: every imagined step reads its whole past anew."""

    def prefill(self: Transformer, z_BTZ: Tensor, action_BT: Tensor, _: KVCache) -> Tensor:
        self.seen = z_BTZ, action_BT  # type: ignore[assignment]
        return self(z_BTZ, action_BT)

    def step(self: Transformer, z_BZ: Tensor, action_B: Tensor, _: KVCache, position: int) -> Tensor:
        z_BTZ, action_BT = self.seen  # type: ignore[misc]
        assert z_BTZ.shape[1] == position
        longer = torch.cat([z_BTZ, z_BZ[:, None]], 1), torch.cat([action_BT, action_B[:, None]], 1)
        return prefill(self, *longer, _)[:, -1]

    with mock.patch.multiple(Transformer, prefill=prefill, step=step):
        yield


def stepwise() -> AbstractContextManager[Any]:
    """Contexts read one step at a time on the cache, as the released code reads them."""

    def prefill(self: Transformer, z_BTZ: Tensor, action_BT: Tensor, cache: KVCache) -> Tensor:
        steps = [self.step(z_BTZ[:, t], action_BT[:, t], cache, t) for t in range(z_BTZ.shape[1])]
        return torch.stack(steps, 1)

    return mock.patch.object(Transformer, "prefill", prefill)


@contextmanager
def heads_each_step() -> Iterator[None]:
    """Reward and end read at every imagined step instead of once over all."""
    features, reward, end_logit = WorldModel.features, WorldModel.reward, WorldModel.end_logit
    read: list[tuple[Tensor, Tensor]] = []

    def one(self: WorldModel, z_NZ: Tensor, h_ND: Tensor) -> Tensor:
        features_NF = features(self, z_NZ, h_ND)
        if not torch.is_grad_enabled():
            read.append((reward(self, features_NF), end_logit(self, features_NF)))
        return features_NF

    def rewards(self: WorldModel, _: Tensor) -> Tensor:
        return torch.stack([of_step for of_step, _ in read], 1)

    def ends(self: WorldModel, _: Tensor) -> Tensor:
        ends_BT = torch.stack([of_step for _, of_step in read], 1)
        read.clear()
        return ends_BT

    with mock.patch.multiple(WorldModel, features=one, reward=rewards, end_logit=ends):
        yield


def multiplied() -> AbstractContextManager[Any]:
    """Products with one-hot states in full."""
    return mock.patch.object(OneHotLinear, "forward", nn.Linear.forward)


def contiguous() -> AbstractContextManager[Any]:
    """Convolutions in PyTorch's default layout."""
    return mock.patch.object(WorldModel, "use_channels_last", return_value=None)


def unkept() -> AbstractContextManager[Any]:
    """The C library's own way with memory: large tensors are mapped anew each time."""
    return mock.patch.object(build, "keep_pages")


ALL, WARMUP = "all of them", 3
VARIANTS: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    ALL: ("auto", nullcontext),
    "float32, which has neither channels_last nor gathers": ("fp32", nullcontext),
    "without channels_last": ("auto", contiguous),
    "normalisation not folded": ("auto", unfolded),
    "no cache of keys and values": ("auto", uncached),
    "contexts step by step": ("auto", stepwise),
    "heads at each step": ("auto", heads_each_step),
    "one-hot products in full": ("auto", multiplied),
    "pages not kept": ("auto", unkept),
}


def calls_of(name: str) -> Calls:
    """The phases of a variant, for a process that runs nothing else."""
    precision, without = VARIANTS[name]
    config = replace(preset("storm"), loop=replace(preset("storm").loop, capacity=2000))
    with without():
        ours = Ours(config, choose("cpu", precision))  # type: ignore[arg-type]

    def run(phase: str) -> None:
        with without():
            ours.calls[phase]()

    return {phase: partial(run, phase) for phase in PHASES}


def main(rounds: int) -> None:
    """Measure and print; two processes at a time, for memory."""
    whole = Apart(calls_of, ALL, warmup=WARMUP)
    of_whole: list[list[float]] = []
    sys.stdout.write(f"| | {' | '.join(PHASES)} | together | over {ALL} |\n|---|{'---|' * 5}\n")
    for name in (name for name in VARIANTS if name != ALL):
        variant = Apart(calls_of, name, warmup=WARMUP)
        of_variant, ratios = [], []
        for _ in range(rounds):
            of_whole.append(_round_ms(whole))
            of_variant.append(_round_ms(variant))
            ratios.append(sum(of_variant[-1]) / sum(of_whole[-1]))
        variant.close()
        sys.stdout.write(_row(name, of_variant, f"{statistics.median(ratios):.2f}"))
    whole.close()
    sys.stdout.write(_row(ALL, of_whole, "1"))


def _round_ms(of: Apart) -> list[float]:
    return [1e3 * of.timed(phase)[0] for phase in PHASES]


def _row(name: str, rounds_ms: list[list[float]], ratio: str) -> str:
    medians = [*(statistics.median(of_phase) for of_phase in zip(*rounds_ms, strict=True))]
    medians.append(statistics.median(map(sum, rounds_ms)))
    return f"| {name} | {' | '.join(f'{ms:,.0f}' for ms in medians)} | {ratio} |\n"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
