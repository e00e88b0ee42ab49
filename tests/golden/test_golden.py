"""The recording of the released code, as a test; and that the comparison can fail."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden import check

PREFIX = Path(__file__).parent / "released_code_small"


@pytest.fixture(scope="module")
def definitions() -> list[check.Line]:
    """The comparison as the definitions on the CPU have it."""
    return list(check.check(PREFIX))


def test_every_recorded_quantity_is_reproduced(definitions: list[check.Line]) -> None:
    assert len(definitions) >= 300
    assert [line for line in definitions if not line.passed] == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("--device cuda", marks=pytest.mark.gpu),
        pytest.param("--device cuda --layout channels_last", marks=pytest.mark.gpu),
        pytest.param("--device cuda --kernels triton --layout channels_last", marks=pytest.mark.gpu),
    ],
)
def test_another_form_reproduces_every_quantity_in_its_own_way(
    options: str, definitions: list[check.Line], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(PREFIX), *options.split()]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert summary == f"{len(definitions)} quantities, 0 beyond tolerance"
    assert [line.split()[1] for line in lines] != [f"{line.error:.2e}" for line in definitions]


def test_a_perturbed_weight_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = check.fill

    def perturbed(prefix: str, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        state = fill(prefix, shapes)
        if prefix == "world_model":
            state["dist_head.post_head.weight"][0] += 1e-2  # one row: softmax does not see a shift of all
        return state

    monkeypatch.setattr(check, "fill", perturbed)
    assert check.main([str(PREFIX)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert any("wm_out_posterior_logits" in line for line in failed)
    # The embedding precedes the perturbed layer.
    assert any(line.startswith("ok") and "wm_out_embedding" in line for line in lines)
    assert lines[-1] == f"{len(lines) - 1} quantities, {len(failed)} beyond tolerance"


def test_the_command_reports_success(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    passing = check.compare("loss", torch.ones(2), [1.0, 1.0], check.EXACT)
    monkeypatch.setattr(check, "check", lambda *_: iter([passing]))
    assert check.main([str(PREFIX)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 quantities, 0 beyond tolerance"


def test_a_missing_recording_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([str(tmp_path / "nothing")], []):
        with pytest.raises(SystemExit) as ended:
            check.main(argv)
        assert ended.value.code == 2
        assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1 + 2e-4])
def test_a_value_beyond_tolerance_does_not_pass(wrong: float) -> None:
    recorded = torch.ones(3, 2)
    got = recorded.clone()
    assert check.compare("x", got, recorded, check.ARRAY).passed
    got[1, 1] = wrong
    assert not check.compare("x", got, recorded, check.ARRAY).passed


def test_an_element_that_cancels_is_held_to_the_scale_of_its_quantity() -> None:
    recorded = torch.tensor([4.7, 1e-6, -2.0])
    assert check.compare("x", recorded + torch.tensor([0, 2.4e-5, 0]), recorded, check.ARRAY).passed
    assert not check.compare("x", recorded + torch.tensor([0, 4.7e-3, 0]), recorded, check.ARRAY).passed


def test_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"want shape \(3,\); got \(1, 3\)"):
        check.compare("x", torch.ones(1, 3), torch.ones(3), check.ARRAY)
