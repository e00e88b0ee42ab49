"""What each of a CPU's fast paths brings: a training step at full size with one of them taken away at a time.

`python -m bench.ablations [ROUNDS]` prints a Markdown table: medians of milliseconds, all variants in turn within a
round. `--compile`'s own subject, CUDA graphs, is bench_step.py's.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.ours import Ours
from storm_fast.config import preset
from storm_fast.onehot import OneHotLinear
from storm_fast.precision import choose
from storm_fast.transformer import KVCache, Transformer
from storm_fast.world_model import Encoder, WorldModel

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


VARIANTS: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "all of them": ("auto", nullcontext),
    "without bf16": ("fp32", nullcontext),
    "without channels_last": ("auto", contiguous),
    "normalisation not folded": ("auto", unfolded),
    "no cache of keys and values": ("auto", uncached),
    "contexts step by step": ("auto", stepwise),
    "heads at each step": ("auto", heads_each_step),
    "one-hot products in full": ("auto", multiplied),
}


def main(rounds: int) -> None:
    """Measure and print."""
    config = replace(preset("storm"), loop=replace(preset("storm").loop, capacity=2000))
    made = {}
    for name, (precision, without) in VARIANTS.items():
        with without():
            made[name] = Ours(config, choose("cpu", precision))  # type: ignore[arg-type]
            for phase in PHASES:
                made[name].calls[phase]()
    took_ms: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, (_, without) in VARIANTS.items():
            with without():
                took_ms[name].append([_ms(made[name].calls[phase]) for phase in PHASES])
    sys.stdout.write(f"| | {' | '.join(PHASES)} | together |\n|---|{'---|' * 4}\n")
    for name, rows in took_ms.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        figures = [*medians, sum(medians)]
        sys.stdout.write(f"| {name} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |\n")


def _ms(call: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start_s)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
