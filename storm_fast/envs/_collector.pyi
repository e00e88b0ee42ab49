"""The compiled collector (csrc/bind.cpp), which checks what it is given before any game steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ale_version: str

class Picture:
    """A screen's picture by itself, for tests."""

    def __init__(
        self, screen_rows: int, screen_columns: int, rows: int, columns: int, colours: Sequence[int]
    ) -> None: ...
    def draw(self, before: bytes, newest: bytes) -> npt.NDArray[np.uint8]: ...

class Collector:
    """N games and their threads."""

    def __init__(
        self,
        *,
        rom: str,
        num_envs: int,
        num_threads: int,
        sticky: float,
        full_action_space: bool,
        frame_skip: int,
        frame_cap: int,
        noops: int = 0,
        rows: int,
        columns: int,
        gray: bool,
        stock: bool = False,
    ) -> None: ...
    @property
    def num_actions(self) -> int: ...
    @property
    def sticky(self) -> float: ...
    def reset(self, seeds: Sequence[int], observations: npt.NDArray[np.uint8]) -> None: ...
    def send(
        self,
        actions: npt.NDArray[np.integer[Any]],
        observations: npt.NDArray[np.uint8],
        terminals: npt.NDArray[np.uint8],
    ) -> None: ...
    def recv(
        self,
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        npt.NDArray[np.float64],
        npt.NDArray[np.int64],
    ]: ...
    def emulate(self, actions: Sequence[int], steps: int) -> None: ...
    def save(self) -> list[bytes]: ...
    def restore(self, saved: Sequence[bytes]) -> None: ...
