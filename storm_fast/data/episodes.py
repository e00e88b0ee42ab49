"""The numbers of the episodes that are played, counted over all environments in the order in which they begin."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Episodes:
    """Of N environments the numbers of the running episodes."""

    def __init__(self, N: int) -> None:
        self.number_N = np.arange(N)

    def end(self, over_N: npt.NDArray[np.bool_]) -> None:
        """Number the episodes that begin where others are over."""
        self.number_N[over_N] = self.number_N.max() + 1 + np.arange(over_N.sum())

    def state_dict(self) -> dict[str, Any]:
        """The numbers."""
        return {"number": self.number_N.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.number_N[:] = state["number"]
