"""Properties of the categorical latents: draw, straight-through sample, KL and free nats."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import categorical

BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))


def random_logits(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_probabilities(logits_NC: Tensor, unimix: float) -> np.ndarray:
    """The definition, written a second time in float64."""
    e_NC = np.exp(logits_NC.double().numpy() - logits_NC.double().numpy().max(-1, keepdims=True))
    return (1 - unimix) * e_NC / e_NC.sum(-1, keepdims=True) + unimix / logits_NC.shape[-1]


@given(
    n=st.integers(1, 65),
    c=st.integers(1, 40),
    unimix=st.sampled_from([0.0, 0.01, 0.5]),
    seed=st.integers(0, 2**31 - 1),
)
def test_draw_equals_a_float64_search_of_the_cumulative_probabilities(n: int, c: int, unimix: float, seed: int) -> None:
    logits_NC = random_logits(n, c, seed=seed)
    u_N = torch.rand(n, generator=torch.Generator().manual_seed(seed + 1))
    edge_NC = numpy_probabilities(logits_NC, unimix).cumsum(-1)[:, :-1]
    u = u_N.double().numpy()
    away = (np.abs(edge_NC - u[:, None]) > 1e-5).all(-1)  # float32 sums may round a tie to either side
    assume(away.any())
    want_N = np.array([np.searchsorted(edge_C, v, side="right") for edge_C, v in zip(edge_NC, u, strict=True)])
    got_N = categorical.draw(logits_NC, u_N, unimix).numpy()
    assert got_N.dtype == np.int64
    assert (got_N[away] == want_N[away]).all()
    assert got_N.min() >= 0
    assert got_N.max() < c


@pytest.mark.parametrize("c", [1, 2, 3, 63, 65])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_smallest_and_largest_draw_take_the_first_and_the_last_class(c: int, unimix: float) -> None:
    logits_NC = random_logits(5, c, seed=c, scale=0.5)
    assert categorical.draw(logits_NC, torch.zeros(5), unimix).tolist() == [0] * 5
    assert categorical.draw(logits_NC, torch.full((5,), BELOW_1), unimix).tolist() == [c - 1] * 5


def test_a_draw_equal_to_an_edge_takes_the_class_above_it() -> None:
    logits_NC = torch.zeros(3, 4)  # quarters, exact in binary
    assert categorical.draw(logits_NC, torch.tensor([0.25, 0.5, 0.75])).tolist() == [1, 2, 3]


def test_a_class_without_probability_is_not_drawn_at_zero() -> None:
    logits_NC = torch.tensor([[-torch.inf, 0.0, 0.0]])
    assert categorical.draw(logits_NC, torch.zeros(1)).tolist() == [1]


def test_draw_takes_any_number_of_leading_axes() -> None:
    logits_BTGC = random_logits(2, 3, 5, 7, seed=0)
    u_BTG = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    class_BTG = categorical.draw(logits_BTGC, u_BTG, 0.01)
    flat_N = categorical.draw(logits_BTGC.flatten(0, 2), u_BTG.flatten(), 0.01)
    assert class_BTG.shape == (2, 3, 5)
    assert torch.equal(class_BTG.flatten(), flat_N)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5])
def test_classes_are_drawn_as_often_as_their_probability_says(unimix: float) -> None:
    N, C = 40_000, 7
    logits_C = random_logits(C, seed=3, scale=1.0)
    u_N = torch.rand(N, generator=torch.Generator().manual_seed(4))
    count_C = categorical.draw(logits_C.expand(N, C), u_N, unimix).bincount(minlength=C).double().numpy()
    want_C = N * numpy_probabilities(logits_C[None], unimix)[0]
    chi_square = ((count_C - want_C) ** 2 / want_C).sum()
    # Mean C - 1, variance 2 (C - 1); six deviations above would be chance less than once in 10^5.
    assert chi_square < (C - 1) + 6 * math.sqrt(2 * (C - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [1, 3, 32, 65])
def test_sample_is_exactly_one_hot_at_the_class_drawn(dtype: torch.dtype, c: int) -> None:
    logits_NC = random_logits(63, c, seed=c).to(dtype).requires_grad_()
    u_N = torch.rand(63, generator=torch.Generator().manual_seed(c))
    sample_NC = categorical.sample(logits_NC, u_N, 0.01)
    index_N = categorical.draw(logits_NC.detach(), u_N, 0.01)
    assert sample_NC.dtype == dtype
    assert torch.equal(sample_NC, torch.nn.functional.one_hot(index_N, c).to(dtype))


@given(n=st.integers(1, 9), c=st.integers(2, 33), seed=st.integers(0, 2**31 - 1))
def test_gradient_of_a_sample_is_that_of_the_probabilities(n: int, c: int, seed: int) -> None:
    logits_NC = random_logits(n, c, seed=seed).requires_grad_()
    weight_NC = random_logits(n, c, seed=seed + 1)
    u_N = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    (got_NC,) = torch.autograd.grad((categorical.sample(logits_NC, u_N, 0.01) * weight_NC).sum(), logits_NC)
    p_NC = 0.99 * logits_NC.softmax(-1) + 0.01 / c
    (want_NC,) = torch.autograd.grad((p_NC * weight_NC).sum(), logits_NC)
    assert want_NC.abs().max() > 0
    torch.testing.assert_close(got_NC, want_NC)


@given(c=st.integers(1, 65), unimix=st.sampled_from([0.01, 0.1, 1.0]), seed=st.integers(0, 2**31 - 1))
def test_unimix_puts_a_floor_under_every_probability(c: int, unimix: float, seed: int) -> None:
    p_NC = categorical.probabilities(random_logits(3, c, seed=seed, scale=100), unimix)
    assert p_NC.dtype == torch.float32
    assert (p_NC >= unimix / c * (1 - 1e-6)).all()
    torch.testing.assert_close(p_NC.sum(-1), torch.ones(3))


def test_without_unimix_probabilities_are_the_softmax() -> None:
    logits_NC = random_logits(5, 7, seed=0)
    assert torch.equal(categorical.probabilities(logits_NC, 0.0), logits_NC.softmax(-1))


@given(
    n=st.integers(1, 5),
    g=st.integers(1, 9),
    c=st.integers(1, 33),
    unimix=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 2**31 - 1),
)
def test_kl_equals_that_of_torch(n: int, g: int, c: int, unimix: float, seed: int) -> None:
    p_logits_NGC, q_logits_NGC = random_logits(n, g, c, seed=seed), random_logits(n, g, c, seed=seed + 1)
    p_NGC, q_NGC = (torch.from_numpy(numpy_probabilities(x, unimix)) for x in (p_logits_NGC, q_logits_NGC))
    want_N = torch.nn.functional.kl_div(q_NGC.log(), p_NGC, reduction="none").sum((-2, -1))
    got_N = categorical.kl(p_logits_NGC, q_logits_NGC, unimix)
    assert got_N.shape == (n,)
    # Each of the G * C float32 terms p (log p - log q) errs by some units of the largest |log| (below 20) times 2^-24.
    torch.testing.assert_close(got_N.double(), want_N, rtol=1e-5, atol=g * 20 * 2**-22)
    assert (got_N >= -g * 20 * 2**-22).all()


def test_kl_of_equals_is_zero_and_of_others_is_positive() -> None:
    p_logits_NGC, q_logits_NGC = random_logits(5, 3, 7, seed=0), random_logits(5, 3, 7, seed=1)
    assert torch.equal(categorical.kl(p_logits_NGC, p_logits_NGC, 0.01), torch.zeros(5))
    assert (categorical.kl(p_logits_NGC, q_logits_NGC, 0.01) > 0).all()


@pytest.mark.parametrize("per", ["batch", "step"])
def test_dynamics_moves_the_prior_alone_and_representation_the_posterior_alone(per: str) -> None:
    post_NGC, prior_NGC = (random_logits(5, 3, 7, seed=s).requires_grad_() for s in (0, 1))
    dynamics, representation, nats = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 0.0, per)  # type: ignore[arg-type]
    assert dynamics.shape == representation.shape == nats.shape == ()
    mean = categorical.kl(post_NGC, prior_NGC, 0.01).mean()
    for loss in (dynamics, representation, nats):
        torch.testing.assert_close(loss, mean)
    want_post, want_prior = torch.autograd.grad(mean, (post_NGC, prior_NGC))
    got_post, got_prior = torch.autograd.grad(dynamics, (post_NGC, prior_NGC), allow_unused=True)
    assert got_post is None
    torch.testing.assert_close(got_prior, want_prior)
    got_post, got_prior = torch.autograd.grad(representation, (post_NGC, prior_NGC), allow_unused=True)
    assert got_prior is None
    torch.testing.assert_close(got_post, want_post)
    assert not nats.requires_grad


def half_below() -> tuple[Tensor, Tensor, Tensor]:
    """Posterior, prior, and the KL of six rows: three below 1 nat but not zero, three above, the mean above."""
    prior_NGC = random_logits(6, 3, 5, seed=0, scale=0.3)
    post_NGC = prior_NGC + random_logits(6, 3, 5, seed=1) * torch.tensor([0.1, 3, 0.1, 3, 0.1, 3])[:, None, None]
    kl_N = categorical.kl(post_NGC, prior_NGC, 0.01)
    assert (kl_N[0::2] < 1).all()
    assert (kl_N[0::2] > 0).all()
    assert (kl_N[1::2] > 1).all()
    assert kl_N.mean() > 1
    return post_NGC.requires_grad_(), prior_NGC.requires_grad_(), kl_N


def test_free_nats_per_batch_bound_the_mean_and_per_step_each_row() -> None:
    post_NGC, prior_NGC, kl_N = half_below()
    by_batch = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 1.0, "batch")
    by_step = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 1.0, "step")
    for loss in (*by_batch, by_step[2]):
        torch.testing.assert_close(loss, kl_N.mean())
    for loss in by_step[:2]:
        torch.testing.assert_close(loss, (3 + kl_N[1::2].sum()) / 6)
    assert by_step[0] > by_batch[0]


@pytest.mark.parametrize(("which", "wrt"), [(0, 1), (1, 0)], ids=["dynamics", "representation"])
def test_free_nats_per_step_stop_the_gradient_of_rows_below_and_per_batch_of_none(which: int, wrt: int) -> None:
    post_NGC, prior_NGC, _ = half_below()
    moved = (post_NGC, prior_NGC)[wrt]
    grads = []
    for per in ("batch", "step"):
        losses = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 1.0, per)  # type: ignore[arg-type]
        grads.append(torch.autograd.grad(losses[which], moved)[0])
    by_batch_NGC, by_step_NGC = grads
    assert (by_batch_NGC.abs().amax((1, 2)) > 0).all()
    assert (by_step_NGC[0::2] == 0).all()
    torch.testing.assert_close(by_step_NGC[1::2], by_batch_NGC[1::2])


@pytest.mark.parametrize("per", ["batch", "step"])
def test_below_the_free_nats_the_loss_is_flat_and_the_kl_still_reported(per: str) -> None:
    prior_NGC = random_logits(6, 3, 5, seed=0).requires_grad_()
    post_NGC = (prior_NGC + 0.1 * random_logits(6, 3, 5, seed=1)).detach().requires_grad_()
    dynamics, representation, nats = categorical.kl_losses(post_NGC, prior_NGC, 0.01, 1.0, per)  # type: ignore[arg-type]
    assert dynamics.item() == representation.item() == 1.0
    assert 0 < nats < 1
    grads = torch.autograd.grad(dynamics + representation, (post_NGC, prior_NGC))
    assert all((grad_NGC == 0).all() for grad_NGC in grads)


@pytest.mark.parametrize("u_shape", [(5,), (4, 1), (), (4, 3)])
def test_uniforms_of_another_shape_raise(u_shape: tuple[int, ...]) -> None:
    logits_NC = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"want logits \[\.\.\., C\] and u \[\.\.\.\]; got \(4, 3\)"):
        categorical.draw(logits_NC, torch.zeros(u_shape))
    with pytest.raises(ValueError, match=r"want logits \[\.\.\., C\] and u \[\.\.\.\]; got \(4, 3\)"):
        categorical.sample(logits_NC, torch.zeros(u_shape), 0.01)
