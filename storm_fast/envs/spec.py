"""An environment as a description: all that model, replay and training need to know of it."""

from collections.abc import Callable
from dataclasses import dataclass

from storm_fast.config import EnvConfig
from storm_fast.envs.interface import SIZE, AnyCollector

Frame = tuple[int, int, int]
"""rows, columns, colours of an observation"""


@dataclass(frozen=True)
class EnvSpec:
    """What is seen in an environment, what can be done in it, and how games of it are opened."""

    name: str
    """as it is shown and as run folders are named"""
    num_actions: int
    """choices of its Discrete action space"""
    open: Callable[[EnvConfig], AnyCollector]
    """opens `num_envs` games side by side"""
    has_lives: bool = False
    """whether games report lives, whose loss the world model learns as an end"""
    frame: Frame = (SIZE, SIZE, 3)
    """rows, columns, colours of every observation: 64 x 64, in colour or gray"""

    def __post_init__(self) -> None:
        if self.frame not in ((SIZE, SIZE, 1), (SIZE, SIZE, 3)):
            raise ValueError(f"want frames of {SIZE} x {SIZE} with 1 or 3 colours; got {self.frame}")
        if self.num_actions < 1:
            raise ValueError(f"want at least one action; got {self.num_actions}")
