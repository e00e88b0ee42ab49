"""The profile of a phase: what ran, how often, how long."""

import pytest
import torch

from bench import profile
from storm_fast.config import LoopConfig


def test_the_longest_operator_comes_first_and_counts_are_those_of_one_call() -> None:
    a, b = torch.zeros(400, 400), torch.zeros(4)

    def call() -> None:
        for _ in range(3):
            torch.mm(a, a)
        b.add_(1)

    rows = profile.rows_of(call)
    by_name = {row.name: row for row in rows}
    if not torch.cuda.is_available():
        assert rows[0].name == "aten::mm"
        assert by_name["aten::mm"].count == 3
        assert by_name["aten::add_"].count == 1
    assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)


def test_the_table_names_the_phase_and_adds_up_all_rows_though_it_shows_some() -> None:
    rows = [profile.Row(3.0, 2.0, "long"), profile.Row(1.0, 4.0, "short")]
    text = profile.table("model", 5.0, rows, shown=1)
    assert text.startswith("model: 5.000 ms, of which 4.000 ms in 6 ")
    assert "long" in text
    assert "short" not in text


def test_an_unknown_form_is_refused_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"want forms of reference, .*; got nonsense"):
        profile.main(["nonsense"])


def test_a_step_counts_phases_as_often_as_they_fall_due() -> None:
    ms = {"act": 1.0, "append": 2.0, "model": 8.0, "imagine": 16.0, "agent": 32.0}
    assert profile.step_ms(ms, LoopConfig(model_every=2, agent_every=4)) == 1 + 2 + 4 + 4 + 8


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SystemExit):
        profile.main(["--preset", "nonsense"])
