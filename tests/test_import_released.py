"""Checkpoints of the released code become run folders that compute the same; what does not fit writes nothing."""

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.envs import spec_of
from storm_fast.errors import InputError
from storm_fast.evaluate import main as evaluate_main
from storm_fast.import_released import Command, agent_names, convert, renamed, world_model_names
from storm_fast.model.agent import Agent
from storm_fast.model.world_model import WorldModel
from storm_fast.runs.run import Run
from tests.golden import check
from tests.small import tree

PREFIX = Path(__file__).parent / "golden/released_code_small"
RECORDED = json.loads(PREFIX.with_suffix(".json").read_text())
State = dict[str, Tensor]


@functools.cache
def filled() -> tuple[State, State]:
    """World model and agent as the released code saves them: its names, six actions, batch counters included."""
    model = check.fill("world_model", RECORDED["world_model_parameters"])
    counters = [name.replace("running_var", "num_batches_tracked") for name in model if name.endswith("running_var")]
    return model | {name: torch.tensor(7) for name in counters}, check.fill("agent", RECORDED["agent_parameters"])


def released() -> tuple[State, State]:
    """Fresh dictionaries of `filled`, to change."""
    model, agent = filled()
    return dict(model), dict(agent)


def command(folder: Path, model: Any, agent: Any, game: str = "Pong") -> Command:
    """Files of the two states, and the command that imports them to folder/run."""
    torch.save(model, folder / "world_model.pth")
    torch.save(agent, folder / "agent.pth")
    return Command(folder / "world_model.pth", folder / "agent.pth", game, folder / "run")


def networks_of(run: Run) -> tuple[WorldModel, Agent]:
    """World model and agent with the run's weights."""
    world_model, agent = build.networks(run.config, spec_of(run.config), choose("cpu", "fp32"))
    (step,) = run.checkpoints()
    build.load_weights(world_model, agent, run.load_weights(step))
    return world_model.eval(), agent.eval()


def test_every_parameter_arrives_under_its_new_name(tmp_path: Path) -> None:
    model, agent = released()
    run = convert(replace(command(tmp_path, model, agent), step=500))
    assert run.checkpoints() == [500]
    stored = Run.open(run.path)
    assert stored.config.scored_step == 500
    assert (stored.config.model.width, stored.config.model.heads, stored.config.model.layers) == (64, 8, 2)
    assert not stored.config.env.full_action_space
    weights = stored.load_weights(500)
    wanted = {f"world_model.{k}": v for k, v in renamed(model, world_model_names(2)).items()}
    wanted |= {f"agent.{k}": v for k, v in renamed(agent, agent_names()).items()}
    left = {name for name in weights.keys() - wanted.keys() if not name.endswith("num_batches_tracked")}
    assert left == {"agent.return_low", "agent.return_high"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in wanted.items())


def test_an_imported_run_imagines_what_the_released_code_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world_model, agent = networks_of(convert(command(tmp_path, *released())))
    monkeypatch.setattr(check.Golden, "world_model", lambda _: world_model)
    monkeypatch.setattr(check.Golden, "agent", lambda _: agent)
    lines = list(check.check_imagination(check.Golden(PREFIX, check.DEFINITIONS)))
    assert {line.name.removesuffix("_strided") for line in lines} >= {"im_out_hidden", "im_out_action", "im_out_reward"}
    assert [line for line in lines if not line.passed] == []


def test_an_imported_run_is_evaluated(tmp_path: Path) -> None:
    run = convert(command(tmp_path, *released()))
    # Episodes of half a second; play until the end of a game of Pong would take minutes.
    file = run.path / "config.json"
    values = json.loads(file.read_text())
    values["env"]["frame_cap"] = 20
    file.write_text(json.dumps(values))
    flags = ["--episodes", "2", "--num-envs", "2", "--device", "cpu", "--precision", "fp32"]
    assert evaluate_main([str(run.path), *flags]) == 0
    result = json.loads((run.path / "eval/100000.json").read_text())
    assert [len(returns) for returns in result["returns_per_env"]] == [1, 1]


def test_a_full_action_space_is_recognised(tmp_path: Path) -> None:
    model, agent = released()
    shapes = RECORDED["world_model_parameters"] | {"storm_transformer.stem.0.weight": [64, 1024 + 18]}
    heads = RECORDED["agent_parameters"] | {"actor.6.weight": [18, *agent["actor.6.weight"].shape[1:]]}
    heads["actor.6.bias"] = [18]
    run = convert(command(tmp_path, check.fill("world_model", shapes), check.fill("agent", heads), "Breakout"))
    assert model["storm_transformer.stem.0.weight"].shape[1] == 1024 + 6
    assert run.config.env.full_action_space


def drop(state: State, name: str) -> State:
    """The state without one parameter, which it has."""
    assert name in state
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("side", "name"),
    [
        (0, "dist_head.prior_head.bias"),
        (0, "storm_transformer.position_encoding.pos_emb.weight"),
        (0, "storm_transformer.layer_stack.1.slf_attn.w_ks.weight"),
        (0, "encoder.backbone.1.running_mean"),
        (1, "actor.6.weight"),
        (1, "slow_critic.0.weight"),
    ],
)
def test_a_missing_parameter_is_named_and_nothing_written(tmp_path: Path, side: int, name: str) -> None:
    states = list(released())
    states[side] = drop(states[side], name)
    asked = command(tmp_path, *states)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=re.escape(name)):
        convert(asked)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("side", [0, 1])
def test_a_parameter_too_many_is_named_and_nothing_written(tmp_path: Path, side: int) -> None:
    states = list(released())
    states[side] = states[side] | {"surplus.weight": torch.zeros(2)}
    asked = command(tmp_path, *states)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"surplus\.weight"):
        convert(asked)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "shape"), [("dist_head.prior_head.bias", (5,)), ("actor.3.weight", (64, 63)), ("actor.0.weight", (64,))]
)
def test_a_parameter_of_another_shape_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    states = released()
    for state in states:
        if name in state:
            state[name] = torch.zeros(shape)
    asked = command(tmp_path, *states)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"want .*; .+"):
        convert(asked)
    assert tree(tmp_path) == before


def test_a_game_with_other_actions_is_refused(tmp_path: Path) -> None:
    asked = command(tmp_path, *released(), game="Breakout")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="Breakout; got 6 actions"):
        convert(asked)
    with pytest.raises(InputError, match="did you mean Pong"):
        convert(replace(asked, game="Pnog"))
    assert tree(tmp_path) == before


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    asked = command(tmp_path, *released())
    before = tree(tmp_path)
    with pytest.raises(InputError, match="--heads"):
        convert(replace(asked, heads=7))
    assert tree(tmp_path) == before


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    asked = command(tmp_path, *released())
    asked.out.mkdir()
    before = tree(tmp_path)
    with pytest.raises(InputError, match="does not exist yet"):
        convert(asked)
    assert tree(tmp_path) == before


class Code:
    """Unpickling this runs code: it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


@pytest.mark.parametrize("side", [0, 1])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, side: int) -> None:
    states: list[dict[str, Any]] = list(released())
    states[side] = states[side] | {"innocent": Code(tmp_path / "ran")}
    asked = command(tmp_path, *states)
    # The unrestricted unpickler runs it, so that the test can fail.
    file = (asked.world_model, asked.agent)[side]
    torch.load(file, weights_only=False)
    (tmp_path / "ran").rmdir()
    before = tree(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(file))):
        convert(asked)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 torn"])
def test_a_file_that_torch_did_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    asked = command(tmp_path, *released())
    asked.agent.write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(asked.agent))):
        convert(asked)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("state", [[torch.zeros(2)], torch.zeros(2), {"actor.6.weight": 3}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, state: Any) -> None:
    model, _ = released()
    asked = command(tmp_path, model, state)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"want a state_dict.*agent\.pth"):
        convert(asked)
    assert tree(tmp_path) == before


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    asked = replace(command(tmp_path, *released()), agent=tmp_path / "absent.pth")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"absent\.pth"):
        convert(asked)
    assert tree(tmp_path) == before
