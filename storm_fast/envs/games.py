"""ALE's games: their names, ROMs, action counts and seeds."""

import difflib
import functools
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.env import AtariEnv

from storm_fast.config import EnvConfig
from storm_fast.errors import InputError


@functools.cache
def games() -> tuple[str, ...]:
    """Every game of ALE, as in ALE/<game>-v5."""
    gymnasium.register_envs(ale_py)
    names = (key.removeprefix("ALE/") for key in gymnasium.registry if key.startswith("ALE/"))
    return tuple(sorted(name.removesuffix("-v5") for name in names if name.endswith("-v5")))


def check_game(game: str) -> None:
    """Raise InputError, with suggestions, unless ALE knows the game."""
    if game in games():
        return
    by_lower = {name.lower(): name for name in games()}
    plain = game.lower().replace("_", "").replace(" ", "").replace("-", "")
    near = [by_lower[name] for name in difflib.get_close_matches(plain, by_lower, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(games()[:5])}"
    raise InputError(f"want a game of ALE; got {game!r}; {hint}")


def make(game: str, config: EnvConfig) -> AtariEnv:
    """One environment of ale_py, a frame a step. Raises InputError for a game that ALE does not know."""
    check_game(game)
    env = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=config.sticky,
        full_action_space=config.full_action_space,
        max_num_frames_per_episode=config.frame_cap,
    ).unwrapped
    assert isinstance(env, AtariEnv)
    return env


def rom_name(game: str) -> str:
    """ALE's name of the game's ROM, as `ale_py.roms` lists them. Raises InputError for an unknown game."""
    check_game(game)
    name: str = gymnasium.spec(f"ALE/{game}-v5").kwargs["game"]
    return name


def rom_path(game: str) -> Path:
    """The ROM in the installed ale_py. Raises InputError for an unknown game, or where the ROM is missing."""
    path = roms.get_rom_path(rom_name(game))
    if path is None:
        raise InputError(f"want a ROM of {game} in ale_py; got none")
    return Path(path)


def action_count(game: str, full: bool) -> int:
    """Actions of the game's minimal set, or of the full one."""
    return len(make(game, EnvConfig(full_action_space=full))._action_set)


def env_seed(seed: int, index: int) -> int:
    """The seed of environment `index`; runs of different seeds share none."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def noops_of_episode(seed: int, episode: int, most: int) -> int:
    """Frames without an action that begin an episode, 0 to `most`: a hash of an environment's seed and the episode.

    It is SplitMix64's, which the C++ collector computes too.
    """
    mask = 2**64 - 1
    x = ((ale_seed(seed) << 32 | episode) + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return (x ^ x >> 31) % (most + 1)


def ale_seed(seed: int) -> int:
    """ALE's own random seed, 32 bits, for an environment's seed: as gymnasium's AtariEnv derives it."""
    return int(np.random.SeedSequence(seed).generate_state(2)[1])
