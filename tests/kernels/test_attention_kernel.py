"""The attention kernels against their reference."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import attention
from storm_fast.kernels.attention import kernel
from tests.kernels.harness import (
    COMPILERS,
    DEVICE,
    DTYPES,
    assert_as_exact_as_eager,
    fenced,
    guarded,
    rand,
    randn,
)

OPS = torch.ops.storm_fast

LENGTHS = st.sampled_from([1, 2, 15, 17, 63, 64, 65, 128])
WIDTHS = st.sampled_from([1, 16, 17, 64, 128])
SCALES = st.sampled_from([1e-3, 1.0, 30.0])
SEEDS = st.integers(0, 2**31 - 1)


def seed_tensor(seed: int) -> Tensor:
    return torch.tensor(seed, dtype=torch.int64, device=DEVICE)


def exact(qkv_BT3HK: Tensor, dropout: float, kept_BHTT: Tensor | None) -> Tensor:
    """Attention written out once more, in the dtype of its input throughout."""
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
    T, K = q_BHTK.shape[-2:]
    score_BHTT = (q_BHTK @ k_BHTK.mT) / K**0.5
    future_TT = torch.ones(T, T, dtype=torch.bool, device=DEVICE).triu(1)
    p_BHTT = score_BHTT.masked_fill(future_TT, -torch.inf).softmax(-1)
    if kept_BHTT is not None:
        p_BHTT = p_BHTT * kept_BHTT / (1 - dropout)
    return (p_BHTT @ v_BHTK).transpose(1, 2)


class Sizes(NamedTuple):
    """How large the terms of a result are: those that cancel in float32, and those rounded to the inputs' dtype."""

    floor: float
    rounded: float


def sizes(
    qkv_BT3HK: Tensor, grad_BTHK: Tensor, dropout: float, kept_BHTT: Tensor | None, dtype: torch.dtype
) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """First-order error terms of out, dq, dk, dv from float64 inputs: products of absolute values (kernels/README.md).

    The kernel rounds the weights P M and the gradient of the scores dS to the dtype of the inputs before they meet v
    or q and k, and D is summed from an output that was rounded. All else is float32.
    """
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4)
    grad_BHTK = grad_BTHK.transpose(1, 2)
    T, K = q_BHTK.shape[-2:]
    past_TT = torch.ones(T, T, dtype=torch.float64, device=DEVICE).tril()
    p_BHTT = (q_BHTK @ k_BHTK.mT / K**0.5).masked_fill(past_TT == 0, -torch.inf).softmax(-1)
    factor_BHTT = 1.0 if kept_BHTT is None else kept_BHTT / (1 - dropout)
    met_BHTT = p_BHTT * factor_BHTT
    # A weight errs by a few roundings of its score, which is a sum of products of both signs.
    score = 1 + (q_BHTK.abs() @ k_BHTK.abs().mT * past_TT).max().item() / K**0.5
    tiny_TT = torch.finfo(dtype).smallest_normal * past_TT
    out_BHTK = met_BHTT @ v_BHTK
    dp_BHTT = grad_BHTK @ v_BHTK.mT * factor_BHTT
    ds_BHTT = p_BHTT * (dp_BHTT - (grad_BHTK * out_BHTK).sum(-1, keepdim=True)) / K**0.5
    delta_BHT1 = (grad_BHTK * out_BHTK).abs().sum(-1, keepdim=True)
    cancelling_BHTT = p_BHTT * (grad_BHTK.abs() @ v_BHTK.abs().mT * factor_BHTT + delta_BHT1) / K**0.5
    rounded_BHTT = ds_BHTT.abs() + p_BHTT * delta_BHT1 / K**0.5 + tiny_TT

    def of(cancelling_BHTS: Tensor, rounded_BHTS: Tensor, x_BHSK: Tensor) -> Sizes:
        met = ((terms @ x_BHSK.abs()).max().item() for terms in (cancelling_BHTS, rounded_BHTS))
        return Sizes(score * next(met), next(met))

    weights = met_BHTT, met_BHTT + tiny_TT
    return (
        of(*weights, v_BHTK),
        of(cancelling_BHTT, rounded_BHTT, k_BHTK),
        of(cancelling_BHTT.mT, rounded_BHTT.mT, q_BHTK),
        of(*(x.mT for x in weights), grad_BHTK),
    )


def may_vanish(t: int, scale: float, dtype: torch.dtype) -> bool:
    """Whether gradients of scores lie within their error: of a single or a saturated weight, and below float16."""
    return t == 1 or scale > 1 or (scale < 1 and dtype == torch.float16)


@settings(max_examples=16)
@given(
    h=st.sampled_from([1, 2]),
    t=LENGTHS,
    k=WIDTHS,
    dtype=st.sampled_from(DTYPES),
    scale=SCALES,
    dropout=st.sampled_from([0.0, 0.1, 0.5]),
    seed=SEEDS,
)
def test_values_and_gradients_equal_the_reference_under_the_same_dropout(
    h: int, t: int, k: int, dtype: torch.dtype, scale: float, dropout: float, seed: int
) -> None:
    qkv_BT3HK = fenced(randn(2, t, 3, h, k, seed=seed, scale=scale).to(dtype))
    grad_BTHK = fenced(randn(2, t, h, k, seed=seed + 1).to(dtype))
    key = seed_tensor(seed << 20)  # uses both halves of the seed
    with guarded():
        out_BTHK, lse_BHT = kernel.attend_fwd(qkv_BT3HK, key, dropout)
        kept_BHTT = kernel.mask_fwd(key, 2, h, t, dropout) if dropout else None
    with guarded():
        got_BT3HK = kernel.attend_bwd(grad_BTHK, qkv_BT3HK, key, out_BTHK, lse_BHT, dropout)
    assert (out_BTHK.dtype, got_BT3HK.dtype) == (dtype, dtype)

    leaf = qkv_BT3HK.double().requires_grad_()
    exact_BTHK = exact(leaf, dropout, kept_BHTT)
    (exact_BT3HK,) = torch.autograd.grad(exact_BTHK, leaf, grad_BTHK.double())
    of_out, *of_grads = sizes(leaf.detach(), grad_BTHK.double(), dropout, kept_BHTT, dtype)
    # Eager is no measure here: it rounds the scores, so that at the largest scale half of its weights are wrong.
    dropped = kept_BHTT is not None and not kept_BHTT.any()
    want = exact_BTHK.detach()
    assert_as_exact_as_eager(out_BTHK, want, want, *of_out, may_vanish=dropped)
    vanishing = dropped or may_vanish(t, scale, dtype)
    for i, size in enumerate(of_grads):
        want = exact_BT3HK[:, :, i]
        assert_as_exact_as_eager(got_BT3HK[:, :, i], want, want, *size, may_vanish=vanishing if i < 2 else dropped)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_zero_and_negated_results_are_outside_of_every_tolerance(scale: float, dtype: torch.dtype) -> None:
    for t in (1, 2, 17, 64, 65, 128):
        for k in (1, 16, 17, 64, 128):
            qkv_BT3HK = randn(2, t, 3, 2, k, seed=t, scale=scale).to(dtype).double().requires_grad_()
            grad_BTHK, kept_BHTT = randn(2, t, 2, k, seed=k).to(dtype).double(), rand(2, 2, t, t, seed=k) >= 0.1
            out_BTHK = exact(qkv_BT3HK, 0.1, kept_BHTT)
            (grad_BT3HK,) = torch.autograd.grad(out_BTHK, qkv_BT3HK, grad_BTHK)
            found = sizes(qkv_BT3HK.detach(), grad_BTHK, 0.1, kept_BHTT, dtype)
            for which, want, size in zip("oqkv", (out_BTHK.detach(), *grad_BT3HK.unbind(2)), found, strict=True):
                assert_as_exact_as_eager(want.to(dtype), want, want, *size, may_vanish=True)
                if which in "qk" and may_vanish(t, scale, dtype):
                    continue
                for wrong in (torch.zeros_like(want), -want):
                    with pytest.raises(AssertionError, match="error"):
                        assert_as_exact_as_eager(wrong.to(dtype), want, want, *size, may_vanish=True)


@pytest.mark.parametrize("changed", [1, 31, 62])
def test_the_future_changes_neither_values_nor_gradients_of_the_past(changed: int) -> None:
    key = seed_tensor(3)
    qkv_BT3HK = randn(1, 65, 3, 2, 16, seed=0)
    grad_BTHK = randn(1, 65, 2, 16, seed=1)
    grad_BTHK[:, changed:] = 0  # only the past is asked about, so nothing may flow to the future
    found = []
    for _ in range(2):
        out_BTHK, lse_BHT = kernel.attend_fwd(qkv_BT3HK, key, 0.1)
        found.append((out_BTHK, kernel.attend_bwd(grad_BTHK, qkv_BT3HK, key, out_BTHK, lse_BHT, 0.1)))
        qkv_BT3HK = qkv_BT3HK.clone()
        qkv_BT3HK[:, changed:] = randn(1, 65 - changed, 3, 2, 16, seed=2)
    (before, before_grad), (after, after_grad) = found
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).any()
    assert torch.equal(before_grad[:, :changed], after_grad[:, :changed])
    assert (after_grad[:, changed:] == 0).all()


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_drops_its_share_independently_and_by_the_seed_alone(dropout: float) -> None:
    B, H, T = 8, 2, 64
    kept_BHTT = kernel.mask_fwd(seed_tensor(1), B, H, T, dropout)
    assert torch.equal(kept_BHTT, kernel.mask_fwd(seed_tensor(1), B, H, T, dropout))
    others = [kernel.mask_fwd(seed_tensor(s), B, H, T, dropout) for s in (2, 1 + 2**32)]
    deviation = (dropout * (1 - dropout) / kept_BHTT.numel()) ** 0.5
    assert abs(kept_BHTT.double().mean().item() - (1 - dropout)) < 6 * deviation
    # Agreement of independent masks; of neighbours in each axis of one mask, too.
    agree, agree_deviation = dropout**2 + (1 - dropout) ** 2, 6 * 0.5 / kept_BHTT.numel() ** 0.5
    pairs = [(kept_BHTT, other) for other in others]
    pairs += [(kept_BHTT.narrow(d, 1, n - 1), kept_BHTT.narrow(d, 0, n - 1)) for d, n in enumerate(kept_BHTT.shape)]
    for a, b in pairs:
        scale = (kept_BHTT.numel() / a.numel()) ** 0.5
        assert abs((a == b).double().mean().item() - agree) < agree_deviation * scale


@pytest.mark.parametrize("T", [5, 18])
def test_no_two_weights_of_a_head_share_a_draw(T: int) -> None:
    kept_BHTT = kernel.mask_fwd(seed_tensor(1), 32, 2, T, 0.5)
    assert kept_BHTT.flatten(2).flatten(0, 1).unique(dim=1).shape[1] == T * T  # 64 bits differ unless the draw is one


@settings(max_examples=12)
@given(
    t=st.sampled_from([1, 8, 17, 65]),
    more=st.sampled_from([0, 1, 16]),
    k=WIDTHS,
    dtype=st.sampled_from(DTYPES),
    seed=SEEDS,
)
def test_prefill_equals_attend_and_writes_its_places_alone(
    t: int, more: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    qkv_BT3HK = fenced(randn(2, t, 3, 3, k, seed=seed).to(dtype))
    k_BHSK, v_BHSK = (fenced(torch.full((2, 3, t + more, k), torch.nan, dtype=dtype, device=DEVICE)) for _ in "kv")
    with guarded():
        out_BTHK = kernel.prefill_fwd(qkv_BT3HK, k_BHSK, v_BHSK)
    assert torch.equal(out_BTHK, kernel.attend_fwd(qkv_BT3HK, seed_tensor(0), 0.0)[0])
    for cache_BHSK, which in ((k_BHSK, 1), (v_BHSK, 2)):
        assert torch.equal(cache_BHSK[:, :, :t], qkv_BT3HK[:, :, which].transpose(1, 2))
        assert cache_BHSK[:, :, t:].isnan().all()


@settings(max_examples=8)
@given(
    t=st.sampled_from([1, 3, 8]),
    steps=st.sampled_from([1, 3]),
    k=WIDTHS,
    dtype=st.sampled_from(DTYPES),
    seed=SEEDS,
)
def test_steps_on_a_poisoned_cache_equal_one_full_pass(
    t: int, steps: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    B, H, T = 2, 3, t + steps
    qkv_BT3HK = randn(B, T, 3, H, k, seed=seed).to(dtype)
    # Two places stay unwritten; a NaN that is read shows.
    k_BHSK, v_BHSK = (fenced(torch.full((B, H, T + 2, k), torch.nan, dtype=dtype, device=DEVICE)) for _ in "kv")
    parts = [kernel.prefill_fwd(qkv_BT3HK[:, :t], k_BHSK, v_BHSK)]
    for place in range(t, T):
        with guarded():
            parts.append(kernel.step_fwd(fenced(qkv_BT3HK[:, place]), k_BHSK, v_BHSK, place)[:, None])
    got_BTHK = torch.cat(parts, 1)
    want = exact(qkv_BT3HK.double(), 0, None)
    size = sizes(qkv_BT3HK.double(), want, 0, None, dtype)[0]
    assert_as_exact_as_eager(got_BTHK, want, want, *size)
    for cache_BHSK, which in ((k_BHSK, 1), (v_BHSK, 2)):
        assert torch.equal(cache_BHSK[:, :, :T], qkv_BT3HK[:, :, which].transpose(1, 2))
        assert cache_BHSK[:, :, T:].isnan().all()


@pytest.mark.usefixtures("triton")
def test_public_dropout_draws_a_new_mask_each_call_and_repeats_with_the_generator() -> None:
    qkv_BT3HK = randn(2, 16, 3, 2, 16, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = attention.attend(qkv_BT3HK, 0.5), attention.attend(qkv_BT3HK, 0.5)
        torch.manual_seed(0)
        again = attention.attend(qkv_BT3HK, 0.5)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_dropout_compiles_without_a_graph_break_and_draws_anew(compiler: str) -> None:
    qkv_BT3HK = randn(2, 16, 3, 2, 16, seed=0).requires_grad_()
    call = torch.compile(lambda x_BT3HK: attention.attend(x_BT3HK, 0.5), fullgraph=True, backend=compiler)
    outs = [call(qkv_BT3HK) for _ in range(2)]
    assert not torch.equal(*outs)
    for out_BTHK in outs:
        # Each value weight is linear in v: what a draw dropped is in its gradient, so that both must be of one seed.
        (grad_BT3HK,) = torch.autograd.grad(out_BTHK, qkv_BT3HK, torch.ones_like(out_BTHK), retain_graph=True)
        along = (grad_BT3HK[:, :, 2] * qkv_BT3HK[:, :, 2]).sum()
        torch.testing.assert_close(along, out_BTHK.sum())


@pytest.mark.usefixtures("triton")
def test_what_the_kernels_cannot_take_raises() -> None:
    cache = torch.zeros(1, 1, 4, 8, device=DEVICE)
    for shape in ((1, 129, 3, 1, 8), (1, 4, 3, 1, 129)):
        with pytest.raises(ValueError, match="want T and head width of at most 128"):
            attention.attend(torch.zeros(shape, device=DEVICE))
    with pytest.raises(ValueError, match="contiguous caches"):
        attention.prefill(torch.zeros(1, 2, 3, 2, 8, device=DEVICE), cache, cache)
    with pytest.raises(ValueError, match="contiguous caches"):
        attention.prefill(torch.zeros(1, 2, 3, 1, 8, device=DEVICE), cache, cache.transpose(2, 3)[:, :, :4].mT)
    for other in (cache.bfloat16(), cache.to("meta")):
        with pytest.raises(ValueError, match="of its dtype and device"):
            attention.prefill(torch.zeros(1, 2, 3, 1, 8, device=DEVICE), cache, other)
        with pytest.raises(ValueError, match="of its dtype and device"):
            attention.step(torch.zeros(1, 3, 1, 8, device=DEVICE), other, other, 0)
    with pytest.raises(ValueError, match="want a cache of at least T 5 places; got 4"):
        attention.prefill(torch.zeros(1, 5, 3, 1, 8, device=DEVICE), cache, cache)
    with pytest.raises(ValueError, match=r"want a position in \[0, 4\).*got 4"):
        attention.step(torch.zeros(1, 3, 1, 8, device=DEVICE), cache, cache, 4)
