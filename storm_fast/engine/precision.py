"""Which device computes, and in which precision."""

from typing import Literal, NamedTuple

import torch

from storm_fast.errors import InputError
from storm_fast.model.world_model import WorldModel


class Precision(NamedTuple):
    """A device and the dtype of its matrix products; parameters and losses are float32 always."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, world_model: WorldModel) -> None:
        """Move the model to the device, in the memory layout that is fastest there."""
        world_model.to(self.device)
        # On a CPU in bf16 channels_last saves 4 to 7 % of a step (bench/LOG.md), while in float32 batch
        # normalisation's gradient is a hundred times more exact without it.
        if self.device.type == "cuda" or self.dtype == torch.bfloat16:
            world_model.use_channels_last()

    def __str__(self) -> str:
        """For the log."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {'bf16 autocast' if self.dtype == torch.bfloat16 else 'float32'}"


def choose(device: str, precision: Literal["auto", "bf16", "fp32"]) -> Precision:
    """The device and dtype that the configuration names.

    Raises:
        InputError: for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"want --device auto, cpu, cuda or cuda:<i>; got {device!r}") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"want --device auto, cpu, cuda or cuda:<i>; got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"want a device that is there; got {device!r}, and torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices (nvidia-smi shows the driver's; --device cpu works anywhere)"
        )
    if precision == "auto":
        return Precision(chosen, torch.bfloat16 if _has_bf16(chosen) else torch.float32)
    return Precision(chosen, torch.bfloat16 if precision == "bf16" else torch.float32)


def _has_bf16(device: torch.device) -> bool:
    """Whether products in bf16 run in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
