"""Playing: N games side by side behind one small interface (interface.py).

For Atari, `GymCollector` is the definition of the environment and the slow twin; `Collector`, in C++, equals it bit by
bit; `AleVectorCollector` serves where the C++ was not built. `PictureCollector` plays any other gymnasium environment.
"""

from collections.abc import Callable
from functools import partial

from storm_fast.config import Config, EnvConfig
from storm_fast.envs.ale_vector import AleVectorCollector
from storm_fast.envs.games import action_count, check_game, env_seed, games
from storm_fast.envs.gym import GymCollector
from storm_fast.envs.interface import AnyCollector, Steps
from storm_fast.envs.native import Collector, extension
from storm_fast.envs.pictures import PictureCollector, describe
from storm_fast.envs.spec import EnvSpec

__all__ = [
    "AleVectorCollector",
    "AnyCollector",
    "Collector",
    "EnvSpec",
    "GymCollector",
    "PictureCollector",
    "Steps",
    "action_count",
    "atari",
    "check_game",
    "describe",
    "env_seed",
    "extension",
    "games",
    "open_collector",
    "spec_of",
]

_KINDS: dict[str, Callable[[str, EnvConfig], AnyCollector]] = {
    "native": Collector,
    "ale_vector": AleVectorCollector,
    "gym": GymCollector,
}


def open_collector(game: str, config: EnvConfig) -> AnyCollector:
    """The collector that `config.collector` names; `auto`: the C++ one where it was built, else ale_py's.

    Raises:
        InputError: for a game that ALE does not know, or a collector that is not there.
    """
    kind = config.collector
    if kind == "auto":
        kind = "ale_vector" if extension() is None else "native"
    return _KINDS[kind](game, config)


def atari(game: str, full_action_space: bool = False) -> EnvSpec:
    """The description of one of ALE's games.

    Raises:
        InputError: for a game that ALE does not know.
    """
    return EnvSpec(game, action_count(game, full_action_space), open=partial(open_collector, game), has_lives=True)


def spec_of(config: Config) -> EnvSpec:
    """The environment that a run's configuration names.

    Raises:
        InputError: for an unknown name, or an environment that does not fit.
    """
    if config.env_id:
        return describe(config.env_id)
    return atari(config.game, config.env.full_action_space)
