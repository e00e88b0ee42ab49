"""How many launches a call takes in eager PyTorch: its ATen calls that are neither views nor allocations."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view", "set_", "alias"}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if not func.is_view and func.__name__.split(".")[0] not in _FREE:
            self.launches += 1
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object]) -> int:
    """Launches of one call, backward passes in it included."""
    with _Counter() as counter:
        call()
    return counter.launches
