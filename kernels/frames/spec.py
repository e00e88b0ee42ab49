"""Where frames become images: the world model's batch, and frames that are gathered from the replay."""

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.frames import gather, normalise
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

FRAME = (64, 64, 3)
_BYTES = 64 * 64 * 3


def _frames(draw: Draw, N: int, *frame: int) -> Tensor:
    return draw.integers(256, N, *frame, dtype=torch.uint8)


def _gathered(draw: Draw, N: int, M: int, *frame: int) -> tuple[Tensor | torch.dtype, ...]:
    return _frames(draw, M, *frame), draw.integers(M, N), draw.dtype


def _centred(draw: Draw, N: int, *frame: int) -> tuple[Tensor | torch.dtype, ...]:
    return _frames(draw, N, *frame), draw.uniform(*frame), draw.dtype


SPECS = (
    Spec(
        "frames.normalise",
        lambda obs_NYXP, dtype: normalise(obs_NYXP, None, dtype, torch.channels_last),
        lambda draw, N, *frame: (_frames(draw, N, *frame), draw.dtype),
        small={"one": (1, 1, 1, 1), "odd": (2, 37, 63, 2), "model": (3, *FRAME)},
        # Bytes are read, twice as many written.
        full={"train": Use("frames normalised, 1024", (1024, *FRAME), Cost(1024 * _BYTES, 3 * 1024 * _BYTES))},
    ),
    Spec(
        "frames.gather",
        lambda obs_MYXP, index_N, dtype: gather(obs_MYXP, index_N, None, dtype, torch.channels_last),
        _gathered,
        small={"one": (1, 1, 1, 1, 1), "odd": (5, 3, 37, 63, 2), "model": (3, 2, *FRAME)},
        full={
            "context": Use(
                "frames gathered, 8192 of 10000",
                (8192, 10_000, *FRAME),
                Cost(8192 * _BYTES, 3 * 8192 * _BYTES + 8 * 8192),
            )
        },
    ),
    Spec(
        "frames.centred",
        lambda obs_NYXP, mean_YXP, dtype: normalise(obs_NYXP, mean_YXP, dtype, torch.contiguous_format),
        _centred,
        small={"odd": (2, 37, 63, 2), "model": (3, *FRAME)},
        full={},
        floors=lambda *_: (1.0,),  # the mean is subtracted from what is at most 1
    ),
)

BUDGETS = {"_gather_fwd": Budget(72, 4)}
