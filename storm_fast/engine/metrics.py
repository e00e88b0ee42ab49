"""Means of metrics that stay on the device until a row is written."""

from typing import Any

import torch
from torch import Tensor


class MeanMetrics:
    """Running sums of 0-d device tensors, a vector for each prefix; reading all of them copies once.

    The vectors keep their addresses and count on the device, so `add` may be part of a captured graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: dict[str, list[str]] = {}
        self.sums: dict[str, Tensor] = {}  # of each prefix, float32: its metrics in the order of `names`, how many adds

    def add(self, prefix: str, metrics: dict[str, Tensor]) -> None:
        """Add one value of each metric, without waiting for the device. A prefix has the same names at every call."""
        if prefix not in self.names:
            self._begin(prefix, list(metrics))
        assert metrics.keys() == set(self.names[prefix]), f"want {self.names[prefix]}; got {list(metrics)}"
        values = [metrics[name].detach().float() for name in self.names[prefix]]
        self.sums[prefix] += torch.stack([*values, torch.ones_like(values[0])])

    def pop(self) -> dict[str, float]:
        """The means since the last call, in one copy to the host."""
        if not self.sums:
            return {}
        values = iter(torch.cat(list(self.sums.values())).tolist())
        means: dict[str, float] = {}
        for prefix, names in self.names.items():
            sums = [next(values) for _ in names]
            count = next(values)
            if count:
                means |= {f"{prefix}/{name}": total / count for name, total in zip(names, sums, strict=True)}
        torch._foreach_zero_(list(self.sums.values()))
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"names": self.names, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for prefix, names in state["names"].items():
            self._begin(prefix, names)
            self.sums[prefix].copy_(state["sums"][prefix])

    def _begin(self, prefix: str, names: list[str]) -> None:
        self.names[prefix] = list(names)
        self.sums[prefix] = torch.zeros(len(names) + 1, device=self.device)
