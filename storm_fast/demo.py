"""Demonstrations: one trajectory beside the replay (STORM sec. 5.3), loaded from a file or recorded on the spot.

The file is a .npz of five arrays, n steps of one environment in order, each episode's last step
and its end included:

    obs         uint8    [n, 64, 64, 3]  the frame seen
    action      integer  [n]             the action taken on seeing it, in the game's action set
    reward      float    [n]             what that earned
    terminated  bool     [n]             whether that ended the episode
    life_loss   bool     [n]             whether that lost a life

`python -m storm_fast.demo --game Freeway --out FILE.npz` records one with the scripted policy.
"""

import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro

from storm_fast.collect import check_game, open_collector
from storm_fast.collect.games import make
from storm_fast.config import EnvConfig
from storm_fast.errors import InputError
from storm_fast.replay import Replay
from storm_fast.run import say
from storm_fast.world_model import FRAME

Arrays = dict[str, npt.NDArray[Any]]

_KINDS = {"obs": "u", "action": "iu", "reward": "f", "terminated": "b", "life_loss": "b"}


@dataclass(frozen=True)
class Script:
    """A policy without eyes: one action with a given probability, else none (NOOP)."""

    action: str  # by ALE's name

    def act(self, actions: list[str], probability: float, generator: np.random.Generator) -> int:
        """An index into the game's action set."""
        return actions.index(self.action if generator.random() < probability else "NOOP")


SCRIPTS = {"Freeway": Script("UP")}
"""Games for which a scripted policy is known to earn reward."""

DEMONSTRATION_PROBABILITY = 0.8  # of the scripted action while a demonstration is recorded


def play(
    game: str,
    env: EnvConfig,
    seed: int,
    act: Callable[[npt.NDArray[np.uint8]], int],
    max_steps: int | None = None,
) -> Arrays:
    """One episode of one environment under `act(obs) -> action`, in the file's format."""
    collector = open_collector(game, replace(env, num_envs=1, num_threads=1))
    obs = collector.reset(seed)[0].copy()
    rows: list[tuple[Any, ...]] = []
    while max_steps is None or len(rows) < max_steps:
        action = act(obs)
        steps = collector.step(np.array([action]))
        terminated, truncated = bool(steps.terminated_N[0]), bool(steps.truncated_N[0])
        rows.append((obs, action, steps.reward_N[0], terminated, bool(steps.life_lost_N[0])))
        if terminated or truncated:
            break
        obs = steps.obs_NYXP[0].copy()
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    return dict(zip(_KINDS, columns, strict=True))


def record(
    game: str, env: EnvConfig, seed: int, probability: float = DEMONSTRATION_PROBABILITY, episodes: int = 1
) -> Arrays:
    """Episodes of the game's scripted policy, one after the other.

    Raises:
        InputError: for a game without one.
    """
    check_game(game)
    if game not in SCRIPTS:
        raise InputError(
            f"want a game with a scripted policy ({', '.join(SCRIPTS)}); got {game}; "
            f"use --demonstration none, or --demonstration FILE.npz"
        )
    actions = make(game, env).get_action_meanings()
    generator = np.random.default_rng((seed, 0xDE30))

    def act(_: npt.NDArray[np.uint8]) -> int:
        return SCRIPTS[game].act(actions, probability, generator)

    # Seeds far from those of training, and from each other's.
    played = [play(game, env, seed + 10_000 + 100_000 * i, act) for i in range(episodes)]
    return {name: np.concatenate([episode[name] for episode in played]) for name in _KINDS}


def load(path: Path, num_actions: int, length: int) -> Arrays:
    """Read and check a demonstration file.

    Args:
        path: a .npz as described above.
        num_actions: of the game; actions must be below it.
        length: of a window; the trajectory must be at least as long.

    Raises:
        InputError: saying which array is wrong, what was wanted and what came.
    """
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array and no names")
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"want a demonstration .npz ({', '.join(_KINDS)}); {path}: {error}") from error
    check(arrays, str(path), num_actions, length)
    return {name: arrays[name] for name in _KINDS}


def check(arrays: Arrays, source: str, num_actions: int, length: int) -> None:
    """Raise InputError, as `load` does, unless the arrays are a demonstration; `source` is for the message."""
    if set(_KINDS) - set(arrays):
        raise InputError(f"want arrays {', '.join(_KINDS)} in {source}; got {', '.join(arrays) or 'none'}")
    n = len(arrays["action"]) if arrays["action"].ndim else 0
    for name, kind in _KINDS.items():
        array = arrays[name]
        shape = (n, *FRAME) if name == "obs" else (n,)
        if array.shape != shape or array.dtype.kind not in kind or (name == "obs" and array.dtype != np.uint8):
            wanted = {"u": "uint8", "iu": "integer", "f": "float", "b": "bool"}[kind]
            raise InputError(f"want {name} {wanted} {list(shape)} in {source}; got {array.dtype} {list(array.shape)}")
    if n < length:
        raise InputError(f"want at least {length} steps, one window, in {source}; got {n}")
    if int(arrays["action"].max()) >= num_actions or int(arrays["action"].min()) < 0:
        raise InputError(
            f"want actions in [0, {num_actions}) in {source}; "
            f"got {int(arrays['action'].min())} to {int(arrays['action'].max())}"
        )
    if not np.isfinite(arrays["reward"]).all():
        raise InputError(f"want finite rewards in {source}; got NaN or infinity")


def save(path: Path, arrays: Arrays) -> None:
    """Write a demonstration file, compressed."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub reads ** as allow_pickle


def to_replay(arrays: Arrays, device: torch.device) -> Replay:
    """The trajectory as a replay of one environment, for `Replay.sample`."""
    n = len(arrays["action"])
    replay = Replay(n, 1, FRAME, device)
    end = arrays["terminated"] | arrays["life_loss"]
    rows = {"obs": arrays["obs"], "action": arrays["action"].astype(np.int64)}
    rows |= {"reward": arrays["reward"].astype(np.float32), "end": end}
    replay.restore(0, {name: torch.from_numpy(np.ascontiguousarray(rows[name]))[:, None] for name in rows})
    return replay


@dataclass(frozen=True)
class Command:
    """Record one episode of the scripted policy as a demonstration file."""

    out: Path
    """the file to write; must not exist"""
    game: str = "Freeway"
    """game with a scripted policy"""
    seed: int = 1
    """of environment and policy"""


def cli() -> None:
    """Entry point of the command."""
    command = tyro.cli(Command)
    try:
        if command.out.exists() or command.out.suffix != ".npz" or not command.out.parent.is_dir():
            raise InputError(f"want a new file.npz in a folder that exists; got {command.out}")
        arrays = record(command.game, EnvConfig(), command.seed)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    save(command.out, arrays)
    say(f"{command.out}: {len(arrays['action'])} steps, return {arrays['reward'].sum():.0f}")


if __name__ == "__main__":
    cli()
