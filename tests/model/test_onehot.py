"""The gathered product of one-hot groups, against the plain one."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from storm_fast.model import onehot
from storm_fast.model.margin import shape_with_margin
from storm_fast.model.onehot import LatentActionLinear, OneHotLinear


def case(n: int, groups: int, classes: int, rest: int, seed: int) -> tuple[OneHotLinear, Tensor]:
    """A layer and inputs [n, 2, F]."""
    torch.manual_seed(seed)
    class_N2G = torch.randint(classes, (n, 2, groups))
    z_N2Z = nn.functional.one_hot(class_N2G, classes).flatten(2).to(torch.bfloat16)
    rest_N2R = torch.randn(n, 2, rest).to(torch.bfloat16)
    return OneHotLinear(groups * classes + rest, 7, groups, classes), torch.cat([z_N2Z, rest_N2R], -1)


def run(call: Callable[[Tensor], Tensor], weight: Tensor, x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """The product under autocast and the weight's gradient, in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        y_ND = call(x_NF)
    (grad_DF,) = torch.autograd.grad(y_ND.float().sin().sum(), weight)
    return y_ND.detach().float(), grad_DF


@given(
    n=st.integers(1, 9),
    groups=st.integers(1, 33),
    classes=st.sampled_from([1, 2, 31, 32, 256]),
    rest=st.sampled_from([0, 1, 18]),
    seed=st.integers(0, 2**31 - 1),
)
def test_gathered_product_is_as_exact_as_the_plain_one(n: int, groups: int, classes: int, rest: int, seed: int) -> None:
    layer, x_NF = case(n, groups, classes, rest, seed)
    weight_DF = layer.weight.detach().to(torch.bfloat16).double().requires_grad_()
    exact_ND = x_NF.double() @ weight_DF.t()
    (exact_DF,) = torch.autograd.grad(exact_ND.sin().sum(), weight_DF)
    y_ND, grad_DF = run(layer, layer.weight, x_NF)
    # One rounding of the sum and, where a product follows, one of each addend: 2**-9 relative to the largest each.
    addends_ND = (x_NF.double().abs() @ weight_DF.detach().abs().t()).clamp_min(1e-6)
    assert ((y_ND - exact_ND).abs() <= 3 * 2**-9 * addends_ND).all()
    assert (grad_DF - exact_DF).norm() <= 0.02 * exact_DF.norm()


def test_a_latent_that_is_not_a_number_shows_in_its_row_alone() -> None:
    layer, x_NF = case(3, 4, 8, 2, 0)
    whole_ND, _ = run(layer, layer.weight, x_NF)
    x_NF[1, 0, :8] = torch.nan
    y_ND, _ = run(layer, layer.weight, x_NF)
    assert y_ND[1, 0].isnan().all()
    whole_ND[1, 0] = torch.nan
    torch.testing.assert_close(y_ND, whole_ND, rtol=0, atol=0, equal_nan=True)


def test_in_bf16_it_gathers_and_the_weights_gradient_is_the_plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x_NF = case(5, 4, 8, 3, 0)
    calls = []
    gathered = onehot._Gathered.apply
    monkeypatch.setattr(onehot._Gathered, "apply", lambda *a: calls.append(1) or gathered(*a))
    y_ND, grad_DF = run(layer, layer.weight, x_NF)
    assert calls == [1]
    plain_ND, plain_DF = run(lambda x: nn.functional.linear(x, layer.weight), layer.weight, x_NF)
    torch.testing.assert_close(y_ND, plain_ND, rtol=0.02, atol=0.02)
    torch.testing.assert_close(grad_DF, plain_DF, rtol=0.02, atol=0.02)


def test_in_float32_and_where_the_input_learns_it_is_the_plain_layer() -> None:
    layer, x_NF = case(5, 4, 8, 3, 0)
    x_NF = x_NF.float()
    assert torch.equal(layer(x_NF), nn.functional.linear(x_NF, layer.weight))
    x_NF.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (grad_NF,) = torch.autograd.grad(layer(x_NF).float().sum(), x_NF)
    torch.testing.assert_close(grad_NF, layer.weight.sum(0).expand_as(x_NF), rtol=0.02, atol=0.02)


def test_more_classes_than_bf16_can_number_are_multiplied() -> None:
    layer, x_NF = case(5, 2, 300, 3, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x_NF), nn.functional.linear(x_NF, layer.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_an_action_that_picks_a_row_equals_the_product_with_both_in_one(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = LatentActionLinear(3, 4, 5, 7)
    wide = torch.zeros(shape_with_margin(layer, layer.weight))
    wide[:, :17] = layer.weight.detach()
    layer.weight = nn.Parameter(wide.to(dtype))
    z_NZ = nn.functional.one_hot(torch.randint(4, (*shape, 3)), 4).flatten(-2).to(dtype)
    action_N = torch.randint(5, shape)
    with torch.no_grad():
        got_ND, want_ND = layer.mixed_by_row(z_NZ, action_N), layer.mixed(z_NZ, action_N)
        torch.testing.assert_close(got_ND, want_ND)
        columns = layer.weight.float().t()
        pairs = zip(z_NZ.flatten(0, -2), action_N.flatten(), strict=True)
        sums = [columns[:12][z_Z.bool()].sum(0) + columns[12 + int(action)] for z_Z, action in pairs]
        torch.testing.assert_close(got_ND.flatten(0, -2), torch.stack(sums).to(dtype))
        z_NZ[0] = torch.nan
        assert layer.mixed_by_row(z_NZ, action_N)[0].isnan().all()
