"""Presets, and the checks that stop a configuration which cannot run."""

import ast
import inspect
from dataclasses import fields, is_dataclass, replace

import pytest

from storm_fast import config as module
from storm_fast.config import PRESETS, Config, EnvConfig, ImagineConfig, ModelConfig, flat, from_dict, preset, to_dict
from storm_fast.errors import InputError


def test_storm_holds_the_numbers_of_table_10() -> None:
    c = preset("storm")
    assert (c.model.layers, c.model.width, c.model.heads, c.model.dropout) == (2, 512, 8, 0.1)
    assert (c.model.batch, c.model.length, c.imagine.imagine_batch) == (16, 64, 1024)
    assert (c.imagine.context, c.imagine.horizon, c.loop.acting_context) == (8, 16, 16)
    assert (c.agent.gamma, c.agent.lam, c.agent.entropy, c.agent.slow_decay) == (0.985, 0.95, 3e-4, 0.98)
    assert (c.model.model_lr, c.model.model_clip, c.agent.agent_lr, c.agent.agent_clip) == (1e-4, 1000, 3e-5, 100)
    assert (c.loop.model_every, c.loop.agent_every, c.loop.warmup, c.loop.capacity) == (1, 1, 1024, 100_000)
    assert (c.steps, c.scored_step, c.env.sticky, c.env.frame_skip) == (102_000, 100_000, 0.25, 4)


def test_paper_differs_from_storm_only_where_its_equations_do() -> None:
    storm, paper = flat(preset("storm")), flat(preset("paper"))
    changed = {name: paper[name] for name in storm if storm[name] != paper[name]}
    assert changed == {
        "preset": "paper",
        "steps": 100_000,
        "scored_step": None,
        "free_nats_per": "step",
        "bootstrap": "next",
        "critic_target": "value",
        "return_scale": "batch",
    }


def test_field_names_are_unique_so_that_groups_dissolve_on_the_command_line() -> None:
    nested = sum(len(v) if isinstance(v, dict) else 1 for v in to_dict(Config()).values())
    assert len(flat(Config())) == nested


def test_every_field_is_documented() -> None:
    for node in ast.parse(inspect.getsource(module)).body:
        if not (isinstance(node, ast.ClassDef) and is_dataclass(getattr(module, node.name))):
            continue
        for this, following in zip(node.body, [*node.body[1:], None], strict=True):
            groups = {f.name for f in fields(Config) if is_dataclass(f.type)}
            if isinstance(this, ast.AnnAssign) and this.target.id not in groups:  # type: ignore[union-attr]
                text = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[union-attr]
                assert len(text) > 20, f"{node.name}.{this.target.id}"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_configuration_survives_its_dictionary(name: str) -> None:
    assert from_dict(to_dict(preset(name))) == preset(name)


def test_a_configuration_of_a_version_without_a_field_that_was_added_since_opens() -> None:
    values = to_dict(preset("tiny"))
    del values["env_id"]
    assert from_dict(values) == preset("tiny")
    for wrong in ({"env_id2": ""}, {"env": values["env"] | {"env_id": ""}}):
        with pytest.raises(InputError, match="wrong or missing: env_id"):
            from_dict(values | wrong)
    del values["seed"]
    with pytest.raises(InputError, match="wrong or missing: seed"):
        from_dict(values)


def test_unknown_preset_says_which_there_are() -> None:
    with pytest.raises(InputError, match="storm, paper, tiny, lean, plus; got 'huge'"):
        preset("huge")


def test_impossible_values_say_what_was_wanted() -> None:
    for build, wanted in (
        (lambda: EnvConfig(num_envs=0), "num-envs of at least 1; got 0"),
        (lambda: EnvConfig(sticky=1.0), "sticky"),
        (lambda: ModelConfig(width=100, heads=8), "divisible"),
        (lambda: ModelConfig(length=65), "length"),
        (lambda: ModelConfig(dropout=1.0), "dropout"),
        (lambda: ImagineConfig(horizon=0), "horizon"),
        (lambda: replace(Config(), imagine=ImagineConfig(context=60)), "max-positions"),
        (lambda: replace(Config(), loop=replace(Config().loop, warmup=10)), "warmup"),
        (lambda: replace(Config(), loop=replace(Config().loop, acting_context=65)), "acting-context"),
        (lambda: replace(Config(), steps=0), "steps"),
    ):
        with pytest.raises(InputError, match=wanted):
            build()
