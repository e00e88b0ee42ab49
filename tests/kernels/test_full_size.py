"""Every op in two settings that need a GPU: at the model's sizes, and replayed from a CUDA graph.

The same comparison at small sizes runs everywhere, so that what the GPU is asked is known to be right.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from storm_fast.kernels import attention, categorical, frames, lambda_return, norm, reconstruction, twohot
from storm_fast.kernels.backend import using
from tests.kernels.harness import DEVICE, assert_as_exact_as_eager, rand, randn

Inputs = list[Tensor]


class Case(NamedTuple):
    """An op with its gradients: inputs of some rows from a seed, the call, and the rows of the model."""

    inputs: Callable[[int, int], Inputs]
    call: Callable[..., tuple[Tensor, ...]]
    full: int
    floors: Callable[..., tuple[float, ...]] | None = None  # as in `assert_as_exact_as_eager`; None: it is random
    small: int = 3


def _floors_of_kl(post_NGC: Tensor, *_: Tensor) -> tuple[float, ...]:
    # Logarithms of at most log(1 / 0.01 C) cancel, in sums over G and C; gradients are means over the rows.
    N, G, C = post_NGC.shape
    log = math.log(100 * C)
    return G * log, G * log, log / N, log / N


def _sample(logits_NC: Tensor, u_N: Tensor, grad_NC: Tensor) -> tuple[Tensor, ...]:
    # Not the draws, which may fall on either side of an edge: test_categorical_kernel.py has them.
    return torch.autograd.grad(categorical.sample(logits_NC, u_N, 0.01), logits_NC, grad_NC.to(logits_NC.dtype))


def _kl(post_NGC: Tensor, prior_NGC: Tensor) -> tuple[Tensor, ...]:
    dynamics, representation, _ = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 1.0, "batch")
    grads = torch.autograd.grad(dynamics + representation, (post_NGC, prior_NGC))
    return dynamics.detach(), representation.detach(), *grads


def _twohot(logits_NV: Tensor, x_N: Tensor, grad_N: Tensor) -> tuple[Tensor, ...]:
    loss_N = twohot.loss(logits_NV, x_N)
    return loss_N.detach(), *torch.autograd.grad(loss_N, logits_NV, grad_N), twohot.encode(x_N, logits_NV.shape[-1])


def _decode(logits_NV: Tensor) -> tuple[Tensor, ...]:
    return (twohot.symlog(twohot.decode(logits_NV)),)


def _return(reward_BT: Tensor, end_BT: Tensor, value_BS: Tensor) -> tuple[Tensor, ...]:
    returns = [lambda_return.lambda_return(reward_BT, end_BT, value_BS, 0.985, 0.95, b) for b in ("current", "next")]
    return *returns, lambda_return.reach_weights(end_BT, 0.985)


def _attend(dropout: float) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    def call(qkv_BT3HK: Tensor, grad_BTHK: Tensor) -> tuple[Tensor, ...]:
        out_BTHK = attention.attend(qkv_BT3HK, dropout)
        return out_BTHK.detach(), *torch.autograd.grad(out_BTHK, qkv_BT3HK, grad_BTHK.to(qkv_BT3HK.dtype))

    return call


def _roll(qkv_BT3HK: Tensor) -> tuple[Tensor, ...]:
    B, T, _, H, K = qkv_BT3HK.shape
    k_BHSK, v_BHSK = (torch.zeros(B, H, T + 1, K, dtype=qkv_BT3HK.dtype, device=DEVICE) for _ in "kv")
    filled_BTHK = attention.prefill(qkv_BT3HK[:, : T - 2], k_BHSK, v_BHSK)
    stepped_BHK = attention.step(qkv_BT3HK[:, T - 2], k_BHSK, v_BHSK, T - 2)
    position_B = torch.full((B,), T - 1, device=DEVICE)
    placed_BHK = attention.step_at(qkv_BT3HK[:, T - 1], k_BHSK, v_BHSK, position_B)
    return filled_BTHK, stepped_BHK, placed_BHK, k_BHSK, v_BHSK


def _frames(obs_NYXP: Tensor, index_N: Tensor) -> tuple[Tensor, ...]:
    layout = torch.channels_last
    return frames.normalise(obs_NYXP, None, torch.bfloat16, layout), frames.gather(
        obs_NYXP, index_N, None, torch.float32, layout
    )


def _reconstruction(image_NPYX: Tensor, obs_NYXP: Tensor, grad_N: Tensor) -> tuple[Tensor, ...]:
    error_N = reconstruction.squared_error(image_NPYX, obs_NYXP)
    return error_N.detach(), *torch.autograd.grad(error_N, image_NPYX, grad_N)


def _norm(
    x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, grad_ND: Tensor, residual_ND: Tensor | None = None
) -> tuple[Tensor, ...]:
    # Away from a ReLU's corner, at which reference and kernel may round to either side: test_norm_kernel.py has it.
    leaves = [x_ND, weight_D.requires_grad_(), bias_D.requires_grad_()]
    leaves += [] if residual_ND is None else [residual_ND.requires_grad_()]
    # Under autocast, as the model calls it: CUDA's own layer_norm refuses weights of another dtype.
    with torch.autocast(x_ND.device.type, torch.bfloat16, enabled=x_ND.dtype == torch.bfloat16):
        y_ND = norm.layer_norm(x_ND, weight_D, bias_D, 1e-6, residual_ND)
    grads = torch.autograd.grad(y_ND, leaves, grad_ND.to(y_ND.dtype))
    return y_ND.detach().to(x_ND.dtype), *grads


def _norm_floors(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, grad_ND: Tensor, *_: Tensor) -> tuple[float, ...]:
    # The terms which cancel in a row's gradient, and in the sums over rows those which do in a column's.
    size, weight, N = grad_ND.abs().max().item(), weight_D.abs().max().item(), x_ND.shape[0]
    spread = 2 * x_ND.abs().max().item()
    return weight * spread, size * weight * spread, N**0.5 * size * spread, N**0.5 * size, size * weight * spread


def _bytes(*shape: int, seed: int) -> Tensor:
    return (256 * rand(*shape, seed=seed)).to(torch.uint8)


CASES = {
    "sample": Case(
        lambda n, s: [randn(n, 32, seed=s).bfloat16(), rand(n, seed=s + 1), randn(n, 32, seed=s + 2).bfloat16()],
        _sample,
        32 * 1024,
        lambda _, __, grad_NC: (grad_NC.abs().max().item(),),
    ),
    "kl": Case(
        lambda n, s: [randn(n, 32, 32, seed=s).bfloat16(), randn(n, 32, 32, seed=s + 1).bfloat16()],
        _kl,
        16 * 63,
        _floors_of_kl,
    ),
    "twohot": Case(
        lambda n, s: [randn(n, 255, seed=s).bfloat16(), randn(n, seed=s + 1, scale=9.0), randn(n, seed=s + 2)],
        _twohot,
        16 * 1024,
        lambda logits_NV, _, grad_N: (2 * logits_NV.abs().max().item(), grad_N.abs().max().item(), 20.0),
    ),
    "decode": Case(lambda n, s: [randn(n, 255, seed=s).bfloat16()], _decode, 17 * 1024, lambda _: (20.0,)),
    "lambda_return": Case(
        lambda n, s: [randn(n, 16, seed=s), rand(n, 16, seed=s + 1).round(), randn(n, 17, seed=s + 2)],
        _return,
        1024,
        lambda *_: (10.0, 10.0, 1.0),
    ),
    "attend": Case(
        lambda n, s: [randn(n, 64, 3, 8, 64, seed=s).bfloat16(), randn(n, 64, 8, 64, seed=s + 1).bfloat16()],
        _attend(0.0),
        16,
        lambda *_: (32.0, 32.0),
        small=1,
    ),
    "attend with dropout": Case(
        lambda n, s: [randn(n, 64, 3, 8, 64, seed=s).bfloat16(), randn(n, 64, 8, 64, seed=s + 1).bfloat16()],
        _attend(0.1),
        16,
    ),
    "prefill and steps": Case(
        lambda n, s: [randn(n, 10, 3, 8, 64, seed=s).bfloat16()], _roll, 1024, lambda _: (32.0,) * 5, small=1
    ),
    "norm": Case(
        lambda n, s: [
            randn(n, 512, seed=s).bfloat16(),
            randn(512, seed=s + 1),
            randn(512, seed=s + 2),
            randn(n, 512, seed=s + 3).bfloat16(),
            randn(n, 512, seed=s + 4).bfloat16(),
        ],
        _norm,
        16 * 1024,
        _norm_floors,
    ),
    "reconstruction": Case(
        lambda n, s: [
            randn(n, 3, 64, 64, seed=s).bfloat16().contiguous(memory_format=torch.channels_last),
            _bytes(n, 64, 64, 3, seed=s + 1),
            randn(n, seed=s + 2),
        ],
        _reconstruction,
        16 * 64,
        lambda image_NPYX, _, grad_N: (0.0, image_NPYX.abs().max().item() * grad_N.abs().max().item()),
    ),
    "frames": Case(
        lambda n, s: [_bytes(n, 64, 64, 3, seed=s), (n * rand(2 * n, seed=s + 1)).long()],
        _frames,
        1024,
        lambda *_: (0.0, 0.0),
    ),
}


def leaves(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies; the first, where it is not of integers, with a gradient, and where it is narrow, in `dtype`."""
    first = inputs[0].to(dtype) if dtype and inputs[0].dtype == torch.bfloat16 else inputs[0].clone()
    return [first.requires_grad_(first.is_floating_point()), *(x.clone() for x in inputs[1:])]


def leaves_of(name: str, inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """`leaves`; of the KL both inputs have gradients."""
    if name != "kl":
        return leaves(inputs, dtype)
    return [leaves([x], dtype)[0] for x in inputs]


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.floors])
def test_values_and_gradients_equal_the_reference(name: str, size: str) -> None:
    case = CASES[name]
    inputs = case.inputs(case.full if size == "full" else case.small, 0)
    with using("reference"):
        exact, eager = case.call(*leaves_of(name, inputs, torch.float32)), case.call(*leaves_of(name, inputs))
    with using("triton"):
        got = case.call(*leaves_of(name, inputs))
    assert case.floors is not None
    for mine, want, narrow, floor in zip(got, exact, eager, case.floors(*inputs), strict=True):
        assert mine.dtype == narrow.dtype
        assert_as_exact_as_eager(mine.detach(), want.detach().double(), narrow.detach(), floor)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_captured_call_replays_on_new_inputs_as_eager_computes_them(name: str) -> None:
    case = CASES[name]
    with using("triton"):
        static = leaves_of(name, case.inputs(case.full, 0))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles before the capture
            for _ in range(3):
                case.call(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = case.call(*static)
        for seed in (1, 2):
            with torch.no_grad():
                for buffer, new in zip(static, case.inputs(case.full, seed), strict=True):
                    buffer.copy_(new)
            graph.replay()
            got = [x.detach().clone() for x in captured]
            if case.floors is None:
                graph.replay()
                # One output and its gradient, each under a mask of its own replay.
                assert not any(torch.equal(before, after) for before, after in zip(got, captured, strict=True))
            else:
                want = case.call(*static)
                assert all(torch.equal(mine, one) for mine, one in zip(got, want, strict=True))
