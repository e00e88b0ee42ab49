"""Properties of causal attention and of its steps on a cache."""

import pytest
import torch
from torch import Tensor

from storm_fast.kernels import attention

SIZES = [(t, k) for t in (1, 3, 63, 65) for k in (1, 16)]
TOLERANCE = 1e-5  # outputs are weighted means of values of order 1: some tens of float32 roundings


def random_qkv(B: int, T: int, H: int, K: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(B, T, 3, H, K, generator=torch.Generator().manual_seed(seed))


def poisoned_cache(B: int, H: int, S: int, K: int) -> tuple[Tensor, Tensor]:
    """Keys and values that are NaN until written."""
    return torch.full((B, H, S, K), torch.nan), torch.full((B, H, S, K), torch.nan)


@pytest.mark.parametrize(("T", "K"), SIZES)
def test_attend_equals_torch(T: int, K: int) -> None:
    qkv_BT3HK = random_qkv(2, T, 3, K)
    q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2).double() for x in qkv_BT3HK.unbind(2))
    want_BHTK = torch.nn.functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
    got_BTHK = attention.attend(qkv_BT3HK)
    assert got_BTHK.shape == (2, T, 3, K)
    torch.testing.assert_close(got_BTHK.double(), want_BHTK.transpose(1, 2), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("changed", [1, 2, 31, 62])
def test_the_future_does_not_change_the_past(changed: int) -> None:
    qkv_BT3HK = random_qkv(2, 63, 3, 5)
    before_BTHK = attention.attend(qkv_BT3HK)
    qkv_BT3HK[:, changed:] = random_qkv(2, 63 - changed, 3, 5, seed=1)
    after_BTHK = attention.attend(qkv_BT3HK)
    assert torch.equal(before_BTHK[:, :changed], after_BTHK[:, :changed])
    assert (before_BTHK[:, changed:] != after_BTHK[:, changed:]).all()


def test_every_earlier_step_is_attended_to() -> None:
    qkv_BT3HK = random_qkv(1, 5, 2, 3).requires_grad_()
    (grad_BT3HK,) = torch.autograd.grad(attention.attend(qkv_BT3HK)[:, 3].sum(), qkv_BT3HK)
    reached_T = (grad_BT3HK[0, :, 2] != 0).all((-2, -1))
    assert reached_T.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attend_keeps_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    qkv_BT3HK = random_qkv(2, 7, 3, 4).to(dtype)
    got_BTHK = attention.attend(qkv_BT3HK)
    assert got_BTHK.dtype == dtype
    want_BTHK = attention.attend(qkv_BT3HK.float())
    # Scores, weights and output are each rounded to the narrow type; values are below 8 and scores below 32.
    torch.testing.assert_close(got_BTHK.float(), want_BTHK, rtol=0, atol=32 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("T", "K"), SIZES)
def test_prefill_equals_attend_and_fills_the_first_places_of_the_cache(T: int, K: int) -> None:
    qkv_BT3HK = random_qkv(2, T, 3, K)
    k_BHSK, v_BHSK = poisoned_cache(2, 3, T + 2, K)
    got_BTHK = attention.prefill(qkv_BT3HK, k_BHSK, v_BHSK)
    assert torch.equal(got_BTHK, attention.attend(qkv_BT3HK))
    assert torch.equal(k_BHSK[:, :, :T], qkv_BT3HK[:, :, 1].transpose(1, 2))
    assert torch.equal(v_BHSK[:, :, :T], qkv_BT3HK[:, :, 2].transpose(1, 2))
    assert k_BHSK[:, :, T:].isnan().all()
    assert v_BHSK[:, :, T:].isnan().all()


@pytest.mark.parametrize(("T", "K"), SIZES)
@pytest.mark.parametrize("prefilled", [0, 1, 2])
def test_steps_on_a_poisoned_cache_equal_one_full_pass(T: int, K: int, prefilled: int) -> None:
    S = T + prefilled + 2  # two places are never written and stay NaN
    qkv_BT3HK = random_qkv(2, T + prefilled, 3, K)
    k_BHSK, v_BHSK = poisoned_cache(2, 3, S, K)
    parts = [attention.prefill(qkv_BT3HK[:, :prefilled], k_BHSK, v_BHSK)] if prefilled else []
    for position in range(prefilled, T + prefilled):
        parts += [attention.step(qkv_BT3HK[:, position], k_BHSK, v_BHSK, position)[:, None]]
    got_BTHK = torch.cat(parts, 1)
    assert not got_BTHK.isnan().any()
    torch.testing.assert_close(got_BTHK, attention.attend(qkv_BT3HK), rtol=0, atol=TOLERANCE)
    assert torch.equal(k_BHSK[:, :, :-2], qkv_BT3HK[:, :, 1].transpose(1, 2))
    assert torch.equal(v_BHSK[:, :, :-2], qkv_BT3HK[:, :, 2].transpose(1, 2))
    assert k_BHSK[:, :, -2:].isnan().all()


@pytest.mark.parametrize("position", [4, 5, -1])
def test_a_position_outside_the_cache_raises_and_writes_nothing(position: int) -> None:
    k_BHSK, v_BHSK = poisoned_cache(2, 3, 4, 5)
    with pytest.raises(ValueError, match=rf"want a position in \[0, 4\).*got {position}"):
        attention.step(random_qkv(2, 1, 3, 5)[:, 0], k_BHSK, v_BHSK, position)
    assert k_BHSK.isnan().all()
    assert v_BHSK.isnan().all()


def test_the_last_place_of_the_cache_is_usable() -> None:
    qkv_BT3HK = random_qkv(2, 4, 3, 5)
    k_BHSK, v_BHSK = poisoned_cache(2, 3, 4, 5)
    attention.prefill(qkv_BT3HK[:, :3], k_BHSK, v_BHSK)
    got_BHK = attention.step(qkv_BT3HK[:, 3], k_BHSK, v_BHSK, 3)
    torch.testing.assert_close(got_BHK, attention.attend(qkv_BT3HK)[:, 3], rtol=0, atol=TOLERANCE)


def test_dropout_keeps_the_mean_and_drops_its_share_of_the_weights() -> None:
    B = 20_000
    qkv_BT3HK = random_qkv(1, 3, 1, 2).expand(B, -1, -1, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out_BTHK = attention.attend(qkv_BT3HK, dropout=0.1)
    want_THK = attention.attend(qkv_BT3HK[:1])[0]
    error_THK = (out_BTHK.mean(0) - want_THK).abs()
    # Six standard errors of a mean over B rows.
    assert (error_THK < 6 * out_BTHK.std(0) / B**0.5 + TOLERANCE).all()
    # The first step has one weight, 1, which is either dropped or divided by 0.9.
    dropped_B = (out_BTHK[:, 0] == 0).all((-2, -1))
    assert abs(dropped_B.float().mean().item() - 0.1) < 6 * (0.1 * 0.9 / B) ** 0.5
    torch.testing.assert_close(out_BTHK[~dropped_B, 0] * 0.9, want_THK[0].expand(int((~dropped_B).sum()), -1, -1))
