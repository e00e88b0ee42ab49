"""How many launches a call takes: `python -m bench.launches` prints the columns of the tables in kernels/README.md.

`python -m bench.launches phases` counts each phase of a step of preset `storm`: eager, with Triton's kernels, and of
the released code where STORM_RELEASED names a checkout. A captured phase is one launch of the host; what its graph
holds is the column of the kernels.

Of the references, the ATen calls that are neither views nor allocations; of the kernels, the launches of Triton.
Neither depends on the sizes, except that the reference of the lambda-return loops over its horizon of 16.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from storm_fast.config import preset
from storm_fast.kernels import attention, backend, categorical, frames, lambda_return, norm, twohot
from storm_fast.precision import choose

_FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view", "set_", "alias"}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if not func.is_view and func.namespace == "aten" and func.__name__.split(".")[0] not in _FREE:
            self.launches += 1
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object]) -> int:
    """Launches of one call, backward passes in it included."""
    with _Counter() as counter:
        call()
    return counter.launches


@contextmanager
def _recorded(names: list[str]) -> Iterator[None]:
    """Triton's launches in the block, by name; none of them runs."""
    from triton.runtime.jit import JITFunction

    def record(self: Any, *args: Any, **__: Any) -> None:
        names.append(self.__name__)
        for x in args:  # nothing is computed, and what indexes must not be what the memory held
            if isinstance(x, Tensor) and x.dtype == torch.int64 and x.ndim:
                x.zero_()

    with mock.patch.object(JITFunction, "run", record):
        yield


def _counts(call: Callable[[], object]) -> tuple[int, int]:
    """Launches of the reference and of the kernels."""
    with backend.using("reference"):
        eager = count(call)
    names: list[str] = []
    with backend.using("triton"), _recorded(names):
        call()
    return eager, len(names)


def _bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def _differentiable(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Counts of the forward pass, and of the backward pass alone."""
    x.requires_grad_()
    shape = forward(x.detach())
    grad = torch.ones_like(shape)
    there = _counts(lambda: forward(x))
    both = _counts(lambda: torch.autograd.grad(forward(x), x, grad))
    return there, (both[0] - there[0], both[1] - there[1])


def tables() -> dict[str, tuple[int, int]]:
    """Launches of the reference and of the kernels, by operation."""
    logits_NC, u_N = _bf16(8, 32), torch.zeros(8)
    logits_NV, x_N = _bf16(8, 255), torch.zeros(8)
    post_BTGC, prior_BTGC = (_bf16(2, 3, 4, 32).requires_grad_() for _ in range(2))
    reward_BT, value_BS = torch.zeros(4, 16), torch.zeros(4, 17)
    qkv_BT3HK, k_BHSK, v_BHSK = _bf16(2, 8, 3, 8, 64), _bf16(2, 8, 24, 64), _bf16(2, 8, 24, 64)
    obs_NYXP, index_N = torch.zeros(3, 64, 64, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    found = {"draw": _counts(lambda: categorical.draw(logits_NC, u_N, 0.01))}
    found["sample"], found["sample, backward"] = _differentiable(
        lambda x: categorical.sample(x, u_N, 0.01), logits_NC.clone()
    )

    def kl() -> tuple[Tensor, ...]:
        return categorical.kl_losses(post_BTGC, prior_BTGC, 0.01, 1.0, "batch")

    there = _counts(kl)
    ones = torch.ones(()), torch.ones(())
    both = _counts(lambda: torch.autograd.grad(kl()[:2], (post_BTGC, prior_BTGC), ones))
    found["KL losses"], found["KL losses, backward"] = there, (both[0] - there[0], both[1] - there[1])
    found["loss"], found["loss, backward"] = _differentiable(lambda x: twohot.loss(x, x_N), logits_NV.clone())
    found["encode"] = _counts(lambda: twohot.encode(x_N, 255))
    found["decode"], found["decode, backward"] = _differentiable(twohot.decode, logits_NV.clone())
    found["lambda-return"] = _counts(
        lambda: lambda_return.lambda_return(reward_BT, reward_BT, value_BS, 0.985, 0.95, "current")
    )
    found["reach weights"] = _counts(lambda: lambda_return.reach_weights(reward_BT, 0.985))
    found["attention"], found["attention, backward"] = _differentiable(
        lambda x: attention.attend(x, 0.1), qkv_BT3HK.clone()
    )
    found["prefill"] = _counts(lambda: attention.prefill(qkv_BT3HK, k_BHSK, v_BHSK))
    found["step"] = _counts(lambda: attention.step(qkv_BT3HK[:, 0], k_BHSK, v_BHSK, 8))
    x_ND, weight_D = _bf16(8, 512), torch.ones(512)

    def normed(x_ND: Tensor, residual_ND: Tensor | None, relu: bool) -> Tensor:
        if backend.chosen() == "triton":
            return norm.layer_norm(x_ND, weight_D, weight_D, 1e-6, residual_ND, relu)
        # As autocast runs it on a GPU: from float32, which the sum with a float32 residual is, and back for a product.
        x_ND = x_ND.float() if residual_ND is None else x_ND
        return norm.layer_norm(x_ND, weight_D, weight_D, 1e-6, residual_ND, relu).to(torch.bfloat16)

    found["norm, ReLU"], found["norm, ReLU, backward"] = _differentiable(
        lambda x: normed(x, None, relu=True), x_ND.clone()
    )
    # The residual is what the norm before has left: float32 of eager autocast, bf16 of the kernel.
    wide_ND, narrow_ND = torch.zeros(8, 512), _bf16(8, 512)
    found["residual, norm"], found["residual, norm, backward"] = _differentiable(
        lambda x: normed(x, narrow_ND if backend.chosen() == "triton" else wide_ND, relu=False), x_ND.clone()
    )
    for name, index in (("normalise", None), ("gather and normalise", index_N)):

        def image(index_N: Tensor | None = index) -> Tensor:
            last = torch.channels_last
            if index_N is None:
                return frames.normalise(obs_NYXP, None, torch.bfloat16, last)
            return frames.gather(obs_NYXP, index_N, None, torch.bfloat16, last)

        found[name] = _counts(image)
    return found


def phases() -> dict[str, dict[str, int]]:
    """Launches of each phase by form."""
    from bench.ours import ACTIONS, Ours
    from bench.released import Released, why_absent

    config, precision = preset("storm"), choose("cpu", "bf16")
    config = replace(config, loop=replace(config.loop, capacity=2000))
    forms: dict[str, Any] = {"eager": Ours(config, precision), "kernels": Ours(config, precision)}
    if why_absent() is None:
        forms["released"] = Released(torch.device("cpu"), ACTIONS, torch.bfloat16)
    found: dict[str, dict[str, int]] = {}
    for phase in forms["eager"].calls:
        for name, form in forms.items():
            names: list[str] = []
            call = form.calls[phase]
            call()  # the first makes an optimiser's moments
            if name == "kernels":
                with backend.using("triton"), _recorded(names), _Counter() as counter:
                    call()
            else:
                with backend.using("reference"), _Counter() as counter:
                    call()
            found.setdefault(phase, {})[name] = counter.launches + len(names)
    return found


def _print_phases() -> None:
    found = phases()
    forms = list(found["act"])
    sys.stdout.write(f"| phase | {' | '.join(forms)} |\n|---|{'---|' * len(forms)}\n")
    for phase, counts in found.items():
        sys.stdout.write(f"| {phase} | {' | '.join(str(counts[form]) for form in forms)} |\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["phases"]:
        _print_phases()
        sys.exit()
    sys.stdout.write("| | eager launches | kernel launches |\n|---|---|---|\n")
    for operation, (eager, kernels) in tables().items():
        sys.stdout.write(f"| {operation} | {eager} | {kernels} |\n")
