"""A demonstration beside the replay (STORM sec. 5.3): its file, the checks on it, and how it becomes a replay.

The file is a .npz of five arrays, n steps of one environment in order, each episode's last step
and its end included:

    obs         uint8    [n, 64, 64, 3]  the frame seen
    action      integer  [n]             the action taken on seeing it, in the game's action set
    reward      float    [n]             what that earned
    terminated  bool     [n]             whether that ended the episode
    life_loss   bool     [n]             whether that lost a life
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from storm_fast.data.replay import Replay
from storm_fast.envs.spec import EnvSpec
from storm_fast.errors import InputError

Arrays = dict[str, npt.NDArray[Any]]

KINDS = {"obs": "u", "action": "iu", "reward": "f", "terminated": "b", "life_loss": "b"}
"""The arrays of the file, in the order of a step's fields, and the kinds of number each may hold."""


def load(path: Path, spec: EnvSpec, length: int) -> Arrays:
    """Read and check a demonstration file.

    Args:
        path: a .npz as described above.
        spec: the environment that it is of.
        length: of a window; the trajectory must be at least as long.

    Raises:
        InputError: saying which array is wrong, what was wanted and what came.
    """
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array and no names")
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(f"want a demonstration .npz ({', '.join(KINDS)}); {path}: {error}") from error
    check(arrays, str(path), spec, length)
    return {name: arrays[name] for name in KINDS}


def check(arrays: Arrays, source: str, spec: EnvSpec, length: int) -> None:
    """Raise InputError, as `load` does, unless the arrays are a demonstration; `source` is for the message."""
    if set(KINDS) - set(arrays):
        raise InputError(f"want arrays {', '.join(KINDS)} in {source}; got {', '.join(arrays) or 'none'}")
    n = len(arrays["action"]) if arrays["action"].ndim else 0
    for name, kind in KINDS.items():
        array = arrays[name]
        shape = (n, *spec.frame) if name == "obs" else (n,)
        if array.shape != shape or array.dtype.kind not in kind or (name == "obs" and array.dtype != np.uint8):
            wanted = {"u": "uint8", "iu": "integer", "f": "float", "b": "bool"}[kind]
            raise InputError(f"want {name} {wanted} {list(shape)} in {source}; got {array.dtype} {list(array.shape)}")
    if n < length:
        raise InputError(f"want at least {length} steps, one window, in {source}; got {n}")
    if int(arrays["action"].max()) >= spec.num_actions or int(arrays["action"].min()) < 0:
        raise InputError(
            f"want actions in [0, {spec.num_actions}) in {source}; "
            f"got {int(arrays['action'].min())} to {int(arrays['action'].max())}"
        )
    if not np.isfinite(arrays["reward"]).all():
        raise InputError(f"want finite rewards in {source}; got NaN or infinity")


def save(path: Path, arrays: Arrays) -> None:
    """Write a demonstration file, compressed."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub reads ** as allow_pickle


def to_replay(arrays: Arrays, device: torch.device) -> Replay:
    """The trajectory as a replay of one environment, for `Replay.sample`."""
    n = len(arrays["action"])
    replay = Replay(n, 1, arrays["obs"].shape[1:], device)
    end = arrays["terminated"] | arrays["life_loss"]
    rows = {"obs": arrays["obs"], "action": arrays["action"].astype(np.int64)}
    rows |= {"reward": arrays["reward"].astype(np.float32), "end": end}
    replay.restore(0, {name: torch.from_numpy(np.ascontiguousarray(rows[name]))[:, None] for name in rows})
    return replay
