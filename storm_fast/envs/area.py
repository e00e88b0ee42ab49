"""Area interpolation of frames, exact by integer arithmetic: the slow twin of the collector's own."""

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]


@functools.cache
def _weights(inputs: int, outputs: int) -> npt.NDArray[np.float32]:
    """How much of each input lies in each output, in the largest units that make every share an integer."""
    edge = np.arange(outputs)[:, None] * inputs
    pixel = np.arange(inputs)[None, :] * outputs
    overlap = np.minimum(edge + inputs, pixel + outputs) - np.maximum(edge, pixel)
    return (overlap.clip(min=0) // math.gcd(inputs, outputs)).astype(np.float32)


def resize(frame_YXP: Frame, rows: int, columns: int) -> Frame:
    """Shrink by averaging areas, rounding to nearest and ties to even.

    Equal to OpenCV's INTER_AREA for every screen of ALE at 64 x 64. Products are float32 where the sums stay below
    2**24 and so are exact, as for those screens, and float64 for larger pictures.

    Args:
        frame_YXP: uint8 rows, columns, colours.
        rows: of the result, at most those of the frame.
        columns: likewise.
    """
    Y, X, P = frame_YXP.shape
    if not (0 < rows <= Y and 0 < columns <= X):
        raise ValueError(f"want a result of at most {Y} x {X}, the frame's size; got {rows} x {columns}")
    down: npt.NDArray[Any] = _weights(Y, rows)
    across: npt.NDArray[Any] = _weights(X, columns)
    total = float(down[0].sum()) * float(across[0].sum())
    kind = np.float32 if 255 * total < 2**24 else np.float64
    down, across = down.astype(kind, copy=False), across.astype(kind, copy=False)
    narrow = (down @ frame_YXP.astype(kind).reshape(Y, X * P)).reshape(rows, X, P)
    area_YXP: Frame = np.rint(np.matmul(across, narrow) / total).astype(np.uint8)
    return area_YXP
