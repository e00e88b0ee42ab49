"""Turn a checkpoint of the authors' released code into a run folder: `python -m storm_fast.import_released`.

The released code names the same parameters otherwise and keeps queries, keys and values apart; nothing else
differs. Files are read with torch's restricted unpickler, which runs no code.
"""

import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from storm_fast.config import Config
from storm_fast.console import say
from storm_fast.engine.build import load_weights, networks, weights
from storm_fast.engine.precision import choose
from storm_fast.envs import action_count, atari, check_game
from storm_fast.errors import InputError
from storm_fast.runs.run import Run, check_free

_NORM = ("weight", "bias", "running_mean", "running_var")
_PAIR = ("weight", "bias")


def world_model_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Our name of each world-model parameter or buffer -> the released ones, stacked along the first axis."""
    names: dict[str, tuple[str, ...]] = {}

    def add(ours: str, released: str, parts: tuple[str, ...]) -> None:
        names.update({f"{ours}.{part}": (f"{released}.{part}",) for part in parts})

    for i in range(4):
        add(f"encoder.convs.{i}", f"encoder.backbone.{3 * i}", ("weight",))
        add(f"encoder.norms.{i}", f"encoder.backbone.{3 * i + 1}", _NORM)
        add(f"decoder.norms.{i}", f"image_decoder.backbone.{3 * i + 2}", _NORM)
    for i in range(3):
        add(f"decoder.deconvs.{i}", f"image_decoder.backbone.{3 * i + 4}", ("weight",))
    add("decoder.linear", "image_decoder.backbone.0", ("weight",))
    add("decoder.last", "image_decoder.backbone.13", _PAIR)
    add("posterior", "dist_head.post_head", _PAIR)
    add("prior", "dist_head.prior_head", _PAIR)
    for i in (0, 3):
        add(f"transformer.mixer.{i}", f"storm_transformer.stem.{i}", ("weight",))
        add(f"transformer.mixer.{i + 1}", f"storm_transformer.stem.{i + 1}", _PAIR)
        for ours, released in (("reward_head", "reward_decoder"), ("end_head", "termination_decoder")):
            add(f"{ours}.{i}", f"{released}.backbone.{i}", ("weight",))
            add(f"{ours}.{i + 1}", f"{released}.backbone.{i + 1}", _PAIR)
    add("reward_head.6", "reward_decoder.head", _PAIR)
    add("end_head.6", "termination_decoder.head.0", _PAIR)
    add("transformer.position", "storm_transformer.position_encoding.pos_emb", ("weight",))
    add("transformer.input_norm", "storm_transformer.layer_norm", _PAIR)
    for i in range(layers):
        ours, released = f"transformer.blocks.{i}", f"storm_transformer.layer_stack.{i}"
        names[f"{ours}.qkv.weight"] = tuple(f"{released}.slf_attn.w_{x}s.weight" for x in "qkv")
        add(f"{ours}.out", f"{released}.slf_attn.fc", ("weight",))
        add(f"{ours}.attention_norm", f"{released}.slf_attn.layer_norm", _PAIR)
        add(f"{ours}.expand", f"{released}.pos_ffn.w_1", _PAIR)
        add(f"{ours}.contract", f"{released}.pos_ffn.w_2", _PAIR)
        add(f"{ours}.feedforward_norm", f"{released}.pos_ffn.layer_norm", _PAIR)
    return names


def agent_names() -> dict[str, tuple[str, ...]]:
    """Our name of each of the agent's parameters -> the released ones: the same."""
    layers = [(0, ("weight",)), (1, _PAIR), (3, ("weight",)), (4, _PAIR), (6, _PAIR)]
    nets = ("actor", "critic", "slow_critic")
    names = [f"{net}.{i}.{part}" for net in nets for i, parts in layers for part in parts]
    return {name: (name,) for name in names}


def renamed(released: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The released tensors under our names. Raises InputError where one is missing or left over."""
    wanted = {part for parts in names.values() for part in parts}
    # A counter that batch normalisation with a fixed momentum never reads.
    given = {name for name in released if not name.endswith("num_batches_tracked")}
    if wanted != given:
        raise InputError(f"want the released code's parameters; wrong or missing: {sorted(wanted ^ given)[:6]}")
    return {ours: torch.cat([released[part] for part in parts]) for ours, parts in names.items()}


@dataclass(frozen=True)
class Command:
    """Import a checkpoint of the released code as a run folder that can be evaluated."""

    world_model: Annotated[Path, tyro.conf.Positional]
    """world_model_<step>.pth of the released code"""
    agent: Annotated[Path, tyro.conf.Positional]
    """agent_<step>.pth of the same step"""
    game: str
    """the game it was trained on, as in ALE/<game>-v5"""
    out: Path
    """the run folder to make; must not exist"""
    step: int = 100_000
    """the checkpoint's step"""
    heads: int = 8
    """attention heads, which the weights do not tell"""


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"want a file that torch.save wrote of a state_dict; {path}: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"want a state_dict, names to tensors; {path} holds something else")
    return state


def convert(command: Command) -> Run:
    """Write the run folder. Raises InputError, with nothing written, when the files do not fit."""
    check_game(command.game)
    check_free(command.out)
    model_state, agent_state = _read(command.world_model), _read(command.agent)
    try:
        width = model_state["storm_transformer.position_encoding.pos_emb.weight"].shape[1]
        positions = model_state["storm_transformer.position_encoding.pos_emb.weight"].shape[0]
        num_actions = agent_state["actor.6.weight"].shape[0]
        agent_width = agent_state["actor.0.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"want the released code's parameters; {error} is missing") from error
    layers = len({n.split(".")[2] for n in model_state if n.startswith("storm_transformer.layer_stack.")})
    default = Config(game=command.game)
    config = replace(
        default,
        model=replace(default.model, width=width, layers=layers, heads=command.heads, max_positions=positions),
        agent=replace(default.agent, agent_width=agent_width),
        scored_step=command.step,
    )
    full = action_count(command.game, full=True)
    if num_actions not in (action_count(command.game, full=False), full):
        raise InputError(f"want weights for the actions of {command.game}; got {num_actions} actions")
    if num_actions == full:
        config = replace(config, env=replace(config.env, full_action_space=True))
    tensors = {f"world_model.{k}": v for k, v in renamed(model_state, world_model_names(layers)).items()}
    tensors |= {f"agent.{k}": v for k, v in renamed(agent_state, agent_names()).items()}
    # The released code does not save the moving percentiles of the return; acting does not need them.
    tensors |= {"agent.return_low": torch.zeros(()), "agent.return_high": torch.zeros(())}
    world_model, agent = networks(config, atari(command.game, config.env.full_action_space), choose("cpu", "fp32"))
    counters = {k: v for k, v in weights(world_model, agent).items() if k.endswith("num_batches_tracked")}
    tensors |= counters
    load_weights(world_model, agent, tensors)
    run = Run.create(command.out, config)
    run.save_weights(command.step, tensors)
    return run


def cli() -> None:
    """Entry point of the command."""
    try:
        run = convert(tyro.cli(Command))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    say(f"imported to {run.path}; now: python -m storm_fast.evaluate {run.path}")


if __name__ == "__main__":
    cli()
