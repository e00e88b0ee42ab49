"""The run folder: complete or absent, verified when read, and rewound when resumed."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.config import PRESETS, from_dict, preset, to_dict
from storm_fast.errors import InputError
from storm_fast.runs import run as run_module
from storm_fast.runs.environment import environment
from storm_fast.runs.run import Run
from storm_fast.train import main, train
from tests.small import flip, small_config, tree


def weights_of(step: int) -> dict[str, Tensor]:
    """Weights that tell the step."""
    return {"a": torch.full((3, 2), float(step)), "b": torch.tensor(step)}


def rows_of(first: int, count: int) -> dict[str, Tensor]:
    """Replay rows that tell their numbers, of two environments and tiny frames."""
    number = torch.arange(first, first + count)[:, None].expand(count, 2)
    obs = number[..., None, None, None].to(torch.uint8).expand(count, 2, 2, 2, 3)
    return {"obs": obs.contiguous(), "action": number.contiguous(), "reward": number.float(), "end": number > 7}


def save(run: Run, step: int, rows: int = 3) -> None:
    """A checkpoint with the given number of new replay rows."""
    run.save_replay_rows(run.saved_rows, rows_of(run.saved_rows, rows))
    run.save_weights(step, weights_of(step), {"step": step, "moments": torch.ones(4)})


def loaded(path: Path, step: int) -> list[Any]:
    """All that reading a checkpoint gives, as plain values that compare."""
    run = Run.open(path)
    state, chunks = run.load_state(step)
    plain = [(first, {name: rows[name].tolist() for name in sorted(rows)}) for first, rows in chunks]
    weights = {name: tensor.tolist() for name, tensor in sorted(run.load_weights(step).items())}
    return [state["step"], state["moments"].tolist(), plain, weights, run.saved_rows]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", small_config())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 48 steps with checkpoints 40 and 48; copy it before changing it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    train(Run(path, small_config(steps=48)), False)
    return path


def test_a_checkpoint_gives_back_what_was_saved(run: Run) -> None:
    save(run, 10, rows=3)
    save(run, 20, rows=2)
    again = Run.open(run.path)
    assert again.config == run.config
    assert again.checkpoints() == [10, 20]
    state, chunks = again.load_state(20)
    assert state["step"] == 20
    assert torch.equal(state["moments"], torch.ones(4))
    assert [first for first, _ in chunks] == [0, 3]
    for (first, rows), count in zip(chunks, (3, 2), strict=True):
        assert rows.keys() == rows_of(first, count).keys()
        assert all(torch.equal(rows[name], tensor) for name, tensor in rows_of(first, count).items())
    assert again.saved_rows == 5
    assert torch.equal(again.load_weights(10)["a"], weights_of(10)["a"])
    # The older checkpoint needs the first chunk alone.
    assert [first for first, _ in Run.open(run.path).load_state(10)[1]] == [0]


def test_rows_that_the_ring_has_overwritten_are_neither_read_nor_kept(run: Run) -> None:
    save(run, 10)  # rows 0 to 2
    save(run, 20)  # and 3 to 5
    run.forget_replay_rows(3)
    save(run, 30)
    assert [first for first, _ in Run.open(run.path).load_state(30)[1]] == [3, 6]
    assert [first for first, _ in Run.open(run.path).load_state(20)[1]] == [0, 3]  # that one still needs them
    run.forget_replay_rows(4)  # of which one row is gone
    save(run, 40)
    assert [first for first, _ in Run.open(run.path).load_state(40)[1]] == [3, 6, 9]
    assert sorted(file.name for file in (run.path / "replay").iterdir()) == ["3-6.npz", "6-9.npz", "9-12.npz"]


def test_a_damaged_older_checkpoint_does_not_keep_a_new_one_from_being_written(run: Run) -> None:
    save(run, 10)
    (run.path / "ckpt/10/manifest.json").write_text("{")
    save(run, 20)
    assert loaded(run.path, 20)[0] == 20


def test_numbers_that_json_lacks_become_null(run: Run) -> None:
    run.append_rows("metrics.jsonl", [{"step": 1, "loss": float("nan"), "norm": float("inf"), "x": 0.5}])
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None, "x": 0.5}


def _half(write: Callable[..., Any], target: Callable[..., Path]) -> Callable[..., Any]:
    """A writer that leaves half a file and then fails as a full disk does."""

    def fail(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        file = target(*args)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        raise OSError("no space left on device")

    return fail


@pytest.mark.parametrize("writer", ["weights", "state", "manifest", "sync", "rename", "replay"])
def test_a_crash_while_writing_leaves_the_previous_checkpoint_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    save(run, 10)
    before = loaded(run.path, 10)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    crash = {
        "weights": (run_module.safetensors.torch, "save_file", lambda f: _half(f, lambda _, file: file)),
        "state": (torch, "save", lambda f: _half(f, lambda _, file: file)),
        "manifest": (run_module, "_write", lambda f: _half(f, lambda file, _: file)),
        "sync": (run_module, "_sync", lambda _: fail),
        "rename": (Path, "rename", lambda _: fail),
        "replay": (np, "savez_compressed", lambda f: _half(f, lambda file: Path(file))),
    }
    owner, name, make = crash[writer]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, make(getattr(owner, name)))
        with pytest.raises(OSError, match="no space left"):
            save(run, 20)
    assert not (run.path / "ckpt/20").exists()
    assert Run.open(run.path).checkpoints() == [10]
    assert loaded(run.path, 10) == before
    # What a reopened run writes next is whole, whatever the crash left lying about.
    again = Run.open(run.path)
    again.load_state(10)
    save(again, 20)
    assert loaded(run.path, 20)[:2] == [20, [1.0] * 4]
    assert [first for first, _ in Run.open(run.path).load_state(20)[1]] == [0, 3]
    assert not list((run.path / "ckpt").glob(".*"))


def test_only_the_two_newest_states_are_kept_and_all_weights(run: Run) -> None:
    steps = [5, 10, 100, 1000, 2000]
    for step in steps:
        save(run, step)
    assert run.checkpoints() == steps
    assert [step for step in steps if (run.path / f"ckpt/{step}/state.pt").exists()] == [1000, 2000]
    for step in steps:
        assert torch.equal(run.load_weights(step)["b"], torch.tensor(step))
    assert loaded(run.path, 1000)[0] == 1000
    with pytest.raises(InputError, match=r"state\.pt|weights alone"):
        run.load_state(100)


def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(run: Run) -> None:
    save(run, 10)
    for load in (run.load_weights, run.load_state):
        with pytest.raises(InputError, match=r"\(10\); got 11"):
            load(11)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json", "chunk"])
def test_resuming_refuses_a_damaged_file_and_names_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: float
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    file = min((path / "replay").glob("*.npz")) if name == "chunk" else path / "ckpt/48" / name
    position = int(place * file.stat().st_size)
    if name == "manifest.json" and place == 0.999:
        position = file.read_text().rindex("}")
    flip(file, position)
    before = tree(path)
    assert main(["--resume", str(path), "--steps", "56"]) == 2
    assert str(file) in capsys.readouterr().err
    assert tree(path) == before


def test_resuming_refuses_a_missing_file_and_names_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    for file in (min((path / "replay").glob("*.npz")), path / "ckpt/48/state.pt", path / "ckpt/48/manifest.json"):
        file.rename(path / "away")
        assert main(["--resume", str(path), "--steps", "56"]) == 2
        assert str(file) in capsys.readouterr().err
        (path / "away").rename(file)


@settings(deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.integers(0, 3))
def test_any_flipped_bit_of_a_checkpoint_is_found(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, which: int
) -> None:
    run = Run.create(tmp_path_factory.mktemp("flip") / "run", small_config())
    save(run, 10)
    save(run, 20)
    names = ("ckpt/20/model.safetensors", "ckpt/20/state.pt", "replay/0-3.npz", "replay/3-6.npz")
    file = run.path / names[which]
    flip(file, int(place * file.stat().st_size), 1 << bit)
    with pytest.raises(InputError, match=re.escape(str(file))):
        loaded(run.path, 20)


def test_any_flipped_byte_of_the_manifest_is_found_or_changes_nothing(run: Run) -> None:
    save(run, 10)
    before = loaded(run.path, 10)
    file = run.path / "ckpt/10/manifest.json"
    wrong = {}
    for position in range(file.stat().st_size):
        for mask in (0x01, 0x20):
            whole = flip(file, position, mask)
            try:
                same, what = loaded(run.path, 10) == before, "loads something else"
            except InputError as error:
                same, what = str(run.path) in str(error), f"names no file: {error}"
            except Exception as error:
                same, what = False, repr(error)
            if not same:
                wrong[position, mask] = what, whole[max(0, position - 12) :][:24]
            file.write_bytes(whole)
    assert wrong == {}


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 50), max_size=12).map(sorted),
    checkpoint=st.integers(0, 50),
    torn=st.sampled_from(["", '{"step": 3', '{"step": 3}', "{"]),
)
def test_rewound_logs_keep_the_whole_rows_up_to_the_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], checkpoint: int, torn: str
) -> None:
    run = Run.create(tmp_path_factory.mktemp("logs") / "run", small_config())
    rows = [{"step": step, "value": i / 3} for i, step in enumerate(steps)]
    for name in ("metrics.jsonl", "episodes.jsonl"):
        run.append_rows(name, rows)
        with (run.path / name).open("a") as file:
            file.write(torn)
    run.rewind_logs(checkpoint)
    for name in ("metrics.jsonl", "episodes.jsonl"):
        text = (run.path / name).read_text()
        assert [json.loads(line) for line in text.splitlines()] == [row for row in rows if row["step"] <= checkpoint]
        assert text == "" or text.endswith("\n")


def test_rewinding_a_run_without_logs_makes_none(run: Run) -> None:
    before = tree(run.path)
    run.rewind_logs(5)
    assert tree(run.path) == before


def test_create_refuses_an_existing_folder_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="does not exist yet"):
        Run.create(tmp_path / "run", small_config())
    assert tree(tmp_path) == before


def test_open_refuses_what_is_no_run(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, run.path / "config.json"):
        with pytest.raises(InputError, match=re.escape(f"{path} is none")):
            Run.open(path)
    for text in ("", "{", "[]", "3", "null", '{"steps": 3}', "\xff"):
        (run.path / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError):
            Run.open(run.path)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_its_file(name: str, tmp_path: Path) -> None:
    config = preset(name)
    assert config.preset == name
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    Run.create(tmp_path / "run", config)
    assert Run.open(tmp_path / "run").config == config


def test_a_changed_field_is_read_back_changed() -> None:
    config = small_config()
    config = replace(config, scored_step=7, agent=replace(config.agent, gamma=0.5))
    read = from_dict(json.loads(json.dumps(to_dict(config))))
    assert (read.scored_step, read.agent.gamma) == (7, 0.5)


@pytest.mark.parametrize("group", [None, "env", "model", "imagine", "agent", "loop"])
def test_unknown_and_missing_fields_are_refused_by_name(group: str | None) -> None:
    def values() -> tuple[dict[str, Any], dict[str, Any]]:
        whole = to_dict(small_config())
        return whole, whole if group is None else whole[group]

    whole, part = values()
    part["colour"] = "red"
    with pytest.raises(InputError, match="colour"):
        from_dict(whole)
    whole, part = values()
    missing, _ = part.popitem()
    with pytest.raises(InputError, match=missing):
        from_dict(whole)


def test_the_environment_tells_commit_and_versions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORM_COMMIT", raising=False)
    told = environment()
    in_git = (Path(__file__).parents[2] / ".git").exists()
    if in_git:
        assert re.fullmatch(r"[0-9a-f]{40}", told["commit"])
        assert isinstance(told["dirty_diff"], str)
    assert told["packages"]["torch"] == version("torch")
    assert told["packages"]["ale-py"] == version("ale-py")
    assert told["packages"].keys() >= {"storm-fast", "triton", "numpy", "gymnasium", "safetensors"}
    written = json.loads((run.path / "env.json").read_text())
    assert written["commit"] == told["commit"]
    assert written["packages"] == told["packages"]


def test_the_commit_that_is_named_goes_before_that_of_a_repository_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORM_COMMIT", "0123456789")
    told = environment()
    assert (told["commit"], told["dirty_diff"]) == ("0123456789", None)
