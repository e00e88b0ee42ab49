"""The categorical kernels against their reference."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import categorical
from storm_fast.kernels.backend import using
from storm_fast.kernels.categorical import reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, rand, randn

from storm_fast.kernels.categorical import kernel  # isort: skip  # after the interpreter is chosen

PERS: list[Literal["batch", "step"]] = ["batch", "step"]
OPS = torch.ops.storm_fast
# The interpreter computes inf - inf in NumPy, which says so.
NUMPY_WARNS = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def is_clear(logits_NC: Tensor, u_N: Tensor, unimix: float) -> Tensor:
    """Rows whose draw is so far from an edge that two ways of summing cannot disagree."""
    p_NC = (1 - unimix) * logits_NC.double().softmax(-1) + unimix / logits_NC.shape[-1]
    return ((p_NC.cumsum(-1)[:, :-1] - u_N.double()[:, None]).abs() > 1e-5).all(-1)


@given(
    n=st.sampled_from([1, 2, 63, 65]),
    c=st.sampled_from([1, 2, 18, 32, 33]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    unimix=st.sampled_from([0.0, 0.01, 0.5]),
    seed=st.integers(0, 2**31 - 1),
)
def test_kernel_draws_the_class_of_its_reference(
    n: int, c: int, dtype: torch.dtype, scale: float, unimix: float, seed: int
) -> None:
    logits_NC, u_N = fenced(randn(n, c, seed=seed, scale=scale).to(dtype)), fenced(rand(n, seed=seed + 1))
    with guarded():
        onehot_NC = kernel.sample_fwd(logits_NC, u_N, unimix)
        index_N = kernel.draw_fwd(logits_NC, u_N, unimix)
    want_N, clear_N = reference.draw(logits_NC, u_N, unimix), is_clear(logits_NC, u_N, unimix)
    assert index_N.dtype == torch.int64
    assert torch.equal(index_N[clear_N], want_N[clear_N])
    assert onehot_NC.dtype == dtype
    assert torch.equal(onehot_NC, torch.nn.functional.one_hot(index_N, c).to(dtype))


def test_kernel_draws_at_the_edges_as_its_reference_does() -> None:
    below_1 = math.nextafter(1.0, 0.0) - 2**-25  # the largest float32 below 1
    logits_NC = torch.zeros(5, 4, device=DEVICE)  # quarters, exact in binary
    u_N = torch.tensor([0.0, 0.25, 0.5, 0.75, below_1], device=DEVICE)
    assert kernel.draw_fwd(logits_NC, u_N, 0.0).tolist() == [0, 1, 2, 3, 3]
    # Float32 sums of all probabilities often end below such a draw; the class must exist all the same.
    many_NC, below_N = randn(500, 33, seed=0), torch.full((500,), below_1, device=DEVICE)
    assert (many_NC.softmax(-1).cumsum(-1)[:, -1] <= below_1).any()
    onehot_NC = kernel.sample_fwd(many_NC, below_N, 0.0)
    assert onehot_NC.argmax(-1).max() == 32
    assert (onehot_NC.sum(-1) == 1).all()
    impossible_NC = torch.tensor([[-torch.inf, 0.0, -torch.inf]], device=DEVICE)
    assert kernel.draw_fwd(impossible_NC, torch.zeros(1, device=DEVICE), 0.0).tolist() == [1]


def test_kernel_draws_classes_as_often_as_their_probability_says() -> None:
    N, C, unimix = 40_000, 7, 0.3
    logits_C = randn(C, seed=3)
    count_C = kernel.draw_fwd(logits_C.expand(N, C), rand(N, seed=4), unimix).bincount(minlength=C).double()
    want_C = N * ((1 - unimix) * logits_C.double().softmax(-1) + unimix / C)
    chi_square = ((count_C - want_C) ** 2 / want_C).sum().item()
    # Mean C - 1, variance 2 (C - 1); six deviations above would be chance less than once in 10^5.
    assert chi_square < (C - 1) + 6 * math.sqrt(2 * (C - 1))


@given(
    n=st.sampled_from([1, 63, 65]),
    c=st.sampled_from([1, 2, 32, 33]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_gradient_of_a_sample_is_that_of_the_probabilities(
    n: int, c: int, dtype: torch.dtype, scale: float, seed: int
) -> None:
    logits_NC, grad_NC = randn(n, c, seed=seed, scale=scale).to(dtype), randn(n, c, seed=seed + 1).to(dtype)
    with guarded():
        got_NC = kernel.sample_bwd(fenced(grad_NC), fenced(logits_NC), 0.01)
    assert got_NC.dtype == dtype

    def gradient(x_NC: Tensor) -> Tensor:
        x_NC = x_NC.clone().requires_grad_()
        p_NC = 0.99 * x_NC.softmax(-1) + 0.01 / c
        return torch.autograd.grad((p_NC * grad_NC.to(x_NC.dtype)).sum(), x_NC)[0]

    s_NC, size_NC = logits_NC.double().softmax(-1), grad_NC.double().abs()
    floor = (s_NC * (size_NC + (s_NC * size_NC).sum(-1, keepdim=True))).max().item()
    # A single class has no gradient, a saturated softmax next to none.
    exact_NC, eager_NC = gradient(logits_NC.double()), gradient(logits_NC)
    assert_as_exact_as_eager(got_NC, exact_NC, eager_NC, floor, may_vanish=c == 1 or scale > 1)


def exact_kl(post_BTGC: Tensor, prior_BTGC: Tensor, unimix: float) -> Tensor:
    p, q = (
        (1 - unimix) * x.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1) + unimix / x.shape[-1]
        for x in (post_BTGC, prior_BTGC)
    )
    return (p * (p.log() - q.log())).sum((-2, -1)).flatten()


def kl_terms(post_BTGC: Tensor, prior_BTGC: Tensor) -> tuple[float, float, float]:
    """Size of what is added up, in absolute value: in a row's KL, in the posterior's gradient, in the prior's."""
    s, r = (x.double().softmax(-1) for x in (post_BTGC, prior_BTGC))
    p, q = (0.99 * x + 0.01 / x.shape[-1] for x in (s, r))
    logs, ratio = p.log().abs() + q.log().abs(), p / q
    post = s * (logs + (s * logs).sum(-1, keepdim=True))
    prior = r * (ratio + (r * ratio).sum(-1, keepdim=True))
    return (p * logs).sum((-2, -1)).max().item(), post.max().item(), prior.max().item()


def exact_losses(kl_N: Tensor, free_nats: float, per: str) -> Tensor:
    return kl_N.mean().clamp_min(free_nats) if per == "batch" else kl_N.clamp_min(free_nats).mean()


@given(
    b=st.sampled_from([1, 2, 3]),
    t=st.sampled_from([1, 2, 5]),
    g=st.sampled_from([1, 3, 8]),
    c=st.sampled_from([2, 5, 32]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    free_nats=st.sampled_from([0.0, 1.0]),
    per=st.sampled_from(PERS),
    is_dense=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_kl_losses_and_gradients_equal_the_reference(
    b: int,
    t: int,
    g: int,
    c: int,
    dtype: torch.dtype,
    scale: float,
    free_nats: float,
    per: str,
    is_dense: bool,
    seed: int,
) -> None:
    # Windows of steps, as the world model's loss cuts them: other rows must not be touched. The posterior may be dense,
    # so that strides of one are none of the other's.
    post_BTGC = fenced(randn(b, t + 1 - is_dense, g, c, seed=seed, scale=scale).to(dtype))[:, 1 - is_dense :]
    prior_BTGC = fenced(randn(b, t + 1, g, c, seed=seed + 1, scale=scale).to(dtype))[:, :-1]
    weight_3 = torch.tensor([0.5, 0.1, 7.0], device=DEVICE)  # the last, the KL's, is to have no effect
    exact_N = exact_kl(post_BTGC.double(), prior_BTGC.double(), 0.01)
    compared_N = exact_N if per == "step" else exact_N.mean()[None]
    # On which side of the free nats such a row lies is a matter of rounding.
    assume(((compared_N - free_nats).abs() > 1e-4).all() or free_nats == 0)
    with guarded():
        out_3, kl_N = kernel.kl_fwd(post_BTGC, prior_BTGC, 0.01, free_nats, per == "step")
    with guarded():
        args = (post_BTGC, prior_BTGC, out_3, kl_N, 0.01, free_nats, per == "step")
        post_grad_BTGC, prior_grad_BTGC = kernel.kl_bwd(weight_3, *args)

    exact_loss = exact_losses(exact_N, free_nats, per)
    exact_3 = torch.stack([exact_loss, exact_loss, exact_N.mean()])
    eager_3 = torch.stack(reference.kl_losses(post_BTGC, prior_BTGC, 0.01, free_nats, per))  # type: ignore[arg-type]
    of_kl, *of_grads = kl_terms(post_BTGC, prior_BTGC)
    # Between almost equal distributions the KL is the square of a difference, and float32 knows it only so far.
    nearly_equal = scale < 1
    assert_as_exact_as_eager(out_3, exact_3, eager_3, of_kl, may_vanish=nearly_equal)
    eager_N = reference.kl(post_BTGC, prior_BTGC, 0.01).flatten()
    assert_as_exact_as_eager(kl_N, exact_N, eager_N, of_kl, may_vanish=nearly_equal)
    is_flat = bool((compared_N < free_nats).all())
    sides = (post_grad_BTGC, post_BTGC, 0.1, of_grads[0]), (prior_grad_BTGC, prior_BTGC, 0.5, of_grads[1])
    for got, x, factor, size in sides:
        wants = []
        for kind in (torch.float64, dtype):
            leaf = x.to(kind).clone().requires_grad_()
            pair = (leaf, prior_BTGC.to(kind)) if x is post_BTGC else (post_BTGC.to(kind), leaf)
            loss = factor * exact_losses(exact_kl(*pair, 0.01), free_nats, per)
            wants.append(torch.autograd.grad(loss, leaf)[0])
        assert got.dtype == dtype
        # Saturated, a softmax has next to no gradient.
        assert_as_exact_as_eager(got, *wants, floor=factor * size / (b * t), may_vanish=is_flat or scale > 1)


@pytest.mark.parametrize("per", PERS)
def test_means_over_more_rows_than_one_block_count_each_once(per: str) -> None:
    kl_2N, out_3 = 2 * rand(2 * 1025, seed=0), torch.full((3,), torch.nan, device=DEVICE)
    kernel._kl_reduce[(1,)](fenced(kl_2N), out_3, 2 * 1025, 1.0, per == "step", BLOCKS=3, BLOCK_N=1024)
    loss = exact_losses(kl_2N.double(), 1.0, per)
    torch.testing.assert_close(out_3.double(), torch.stack([loss, loss, kl_2N.double().mean()]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("per", PERS)
def test_public_kl_stops_gradients_and_free_nats_as_the_reference_does(per: Literal["batch", "step"]) -> None:
    prior_NGC = randn(6, 3, 5, seed=0, scale=0.3)
    post_NGC = prior_NGC + randn(6, 3, 5, seed=1) * torch.tensor([0.1, 6, 0.1, 6, 0.1, 6], device=DEVICE)[:, None, None]
    leaves = (post_NGC.requires_grad_(), prior_NGC.requires_grad_())
    found = []
    for name in ("reference", "triton"):
        with using(name):  # type: ignore[arg-type]
            losses = categorical.kl_losses(*leaves, 0.01, 1.0, per)
            assert not losses[2].requires_grad
            each = [torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True) for loss in losses[:2]]
        found.append((losses, [[torch.zeros((), device=DEVICE) if x is None else x for x in pair] for pair in each]))
    for want, got in zip(*found, strict=True):
        for a, b in zip(want, got, strict=True):
            for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
                torch.testing.assert_close(y, x.expand_as(y), rtol=1e-4, atol=1e-6)
    dynamics, representation = found[1][1]
    assert (dynamics[0] == 0).all()
    assert (representation[1] == 0).all()
    assert (dynamics[1][1::2].abs().amax((-2, -1)) > 0).all()


@NUMPY_WARNS
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1], ids=["posterior", "prior"])
def test_kl_of_what_is_no_number_is_none_where_the_references_is(
    side: int, bad: float, per: Literal["batch", "step"]
) -> None:
    leaves = [randn(6, 3, 5, seed=s) for s in (0, 1)]
    leaves[side][2, 1, 3] = bad
    leaves = [leaf.requires_grad_() for leaf in leaves]
    found = []
    for name in ("reference", "triton"):
        with using(name):  # type: ignore[arg-type]
            losses = categorical.kl_losses(*leaves, 0.01, 1.0, per)
            grads = torch.autograd.grad(losses[0] + losses[1], leaves)
        found.append([*(loss.detach() for loss in losses), *grads])
    assert found[0][0].isnan()
    for want, got in zip(*found, strict=True):
        assert torch.equal(want.isnan(), got.isnan())
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6, equal_nan=True)


@NUMPY_WARNS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sample_of_what_is_no_number_is_none_where_the_references_is(bad: float, dtype: torch.dtype) -> None:
    logits_NC, u_N, grad_NC = randn(5, 7, seed=0).to(dtype), rand(5, seed=1), randn(5, 7, seed=2).to(dtype)
    logits_NC[3, 2] = bad
    found = []
    for name in ("reference", "triton"):
        leaf_NC = logits_NC.clone().requires_grad_()
        with using(name):  # type: ignore[arg-type]
            sample_NC = categorical.sample(leaf_NC, u_N, 0.01)
            found.append((sample_NC.detach(), categorical.draw(logits_NC, u_N, 0.01)))
            found[-1] += torch.autograd.grad(sample_NC, leaf_NC, grad_NC)
    assert found[0][0][3].isnan().all()
    for want, got in zip(*found, strict=True):
        assert torch.equal(want.isnan(), got.isnan())
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.gpu
@settings(max_examples=3)
@given(seed=st.integers(0, 2**31 - 1))
def test_large_shapes_draw_the_classes_of_the_reference(seed: int) -> None:
    logits_NC, u_N = randn(1024 * 32, 32, seed=seed).bfloat16(), rand(1024 * 32, seed=seed + 1)
    clear_N = is_clear(logits_NC, u_N, 0.01)
    assert torch.equal(kernel.draw_fwd(logits_NC, u_N, 0.01)[clear_N], reference.draw(logits_NC, u_N, 0.01)[clear_N])


@pytest.mark.gpu
def test_draws_beyond_two_to_the_31_elements_are_those_of_their_own_rows() -> None:
    N, C, last = 2**26 + 1, 32, 1000
    logits_NC, u_N = torch.zeros(N, C, dtype=torch.bfloat16, device=DEVICE), torch.full((N,), 0.49, device=DEVICE)
    logits_NC[-last:], u_N[-last:] = randn(last, C, seed=0).bfloat16(), rand(last, seed=1)
    index_N = kernel.draw_fwd(logits_NC, u_N, 0.01)
    assert (index_N[:-last] == 15).all()  # of 32 equal ones: 15 / 32 <= 0.49 < 16 / 32
    end_NC, end_N = logits_NC[-last:], u_N[-last:]
    clear_N = is_clear(end_NC, end_N, 0.01)
    assert torch.equal(index_N[-last:][clear_N], reference.draw(end_NC, end_N, 0.01)[clear_N])
