"""How many launches a call takes: `python -m bench.launches` prints the columns of the tables in kernels/README.md.

`python -m bench.launches phases` counts each phase of a step of preset `storm`: eager, with Triton's kernels, and of
the released code where STORM_RELEASED names a checkout. A captured phase is one launch of the host; what its graph
holds is the column of the kernels.

On a CPU, the ATen calls that are neither views nor allocations, of the kernels with Triton's launches, none of which
runs. On a GPU, what the profiler saw the device do. Neither depends on the sizes, except that the reference of the
lambda-return loops over its horizon of 16.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.instrument.forms import DEVICE, IS_GPU
from storm_fast.config import preset
from storm_fast.engine.precision import choose
from storm_fast.kernels import attention, backend, categorical, frames, lambda_return, norm, reconstruction, twohot
from storm_fast.kernels.norm import reference as norm_reference
from storm_fast.model.onehot import OneHotLinear

_FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view", "set_", "alias"}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        dense = Tensor.contiguous

        def contiguous(x: Tensor) -> Tensor:
            self.launches += not x.is_contiguous()
            return dense(x)

        self._contiguous = contiguous

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.namespace == "storm_fast":  # one of ours, inside of which this mode is off
            with mock.patch.object(Tensor, "contiguous", self._contiguous):
                return func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten" and func.__name__.split(".")[0] not in _FREE:
            self.launches += 1
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object], kernels: backend.Backend) -> int:
    """Launches of one call, backward passes in it included."""
    with backend.using(kernels):
        if IS_GPU:
            return _seen_by_the_profiler(call)
        names: list[str] = []
        with _recorded(names) if kernels == "triton" else nullcontext(), _Counter() as counter:
            call()
        return counter.launches + len(names)


def _seen_by_the_profiler(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that the device ran; the first call compiles."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.is_user_annotation for event in on_device)


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
    return count(call, "reference"), count(call, "triton")


def _bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def _differentiable(forward: Callable[[Tensor], Tensor], x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Counts of the forward pass, and of the backward pass alone."""
    x.requires_grad_()
    out = forward(x.detach())
    grad = torch.ones(out.shape, dtype=out.dtype)  # dense, as what follows leaves it
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
    qkv_B3HK = qkv_BT3HK[:, 0].contiguous()
    found["step"] = _counts(lambda: attention.step(qkv_B3HK, k_BHSK, v_BHSK, 8))
    found["reconstruction"], found["reconstruction, backward"] = _differentiable(
        lambda x: reconstruction.squared_error(x, obs_NYXP),
        _bf16(3, 3, 64, 64).contiguous(memory_format=torch.channels_last),
    )
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
    from bench.instrument.ours import ACTIONS, Ours
    from bench.instrument.released import Released, why_absent

    config, precision = preset("storm"), choose(DEVICE.type, "bf16")
    config = replace(config, loop=replace(config.loop, capacity=2000))
    forms: dict[str, Any] = {"eager": Ours(config, precision), "kernels": Ours(config, precision)}
    if why_absent() is None:
        forms["released"] = Released(DEVICE, ACTIONS, torch.bfloat16)
    found: dict[str, dict[str, int]] = {}
    for phase in forms["eager"].calls:
        for name, form in forms.items():
            call = form.calls[phase]
            # As on a GPU: autocast's dtypes there, and one-hot products in full (a gather reads what no kernel wrote).
            full = mock.patch.object(OneHotLinear, "forward", OneHotLinear.multiplied)
            with full, mock.patch.object(norm_reference, "NARROWED", ("cuda", "cpu")):
                with backend.using("reference"):
                    call()  # the first makes an optimiser's moments
                found.setdefault(phase, {})[name] = count(call, "triton" if name == "kernels" else "reference")
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
    torch.set_default_device(DEVICE)
    sys.stdout.write("| | eager launches | kernel launches |\n|---|---|---|\n")
    for operation, (eager, kernels) in tables().items():
        sys.stdout.write(f"| {operation} | {eager} | {kernels} |\n")
