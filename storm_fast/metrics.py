"""Means of metrics that stay on the device until a row is written."""

from typing import Any

import torch
from torch import Tensor


class MeanMetrics:
    """Running sums of 0-d device tensors; reading them copies once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, prefix: str, metrics: dict[str, Tensor]) -> None:
        """Add one value of each metric, without waiting for the device."""
        for name, value in metrics.items():
            key = f"{prefix}/{name}"
            value = value.detach().float()
            self.sums[key] = self.sums[key] + value if key in self.sums else value.clone()
            self.counts[key] = self.counts.get(key, 0) + 1

    def pop(self) -> dict[str, float]:
        """The means since the last call, in one copy to the host."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        means = {key: value / self.counts[key] for key, value in zip(self.sums, values, strict=True)}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.sums = {key: value.to(self.device) for key, value in state["sums"].items()}
        self.counts = dict(state["counts"])
