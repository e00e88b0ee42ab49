"""What training and evaluation ask of a collector, and what it gives them."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from storm_fast.errors import InputError

SIZE = 64  # rows and columns of an observation

Frames: TypeAlias = npt.NDArray[np.uint8] | torch.Tensor


class Steps(NamedTuple):
    """One step of N environments; host memory, owned by the collector, valid until its next step."""

    obs_NYXP: npt.NDArray[np.uint8]  # what to act on next: after an end, the new episode's first frame
    reward_N: npt.NDArray[np.float32]
    terminated_N: npt.NDArray[np.bool_]
    truncated_N: npt.NDArray[np.bool_]
    life_lost_N: npt.NDArray[np.bool_]  # fewer lives than at the step before; the episode goes on
    episode_return_N: npt.NDArray[np.float64]  # of the running episode, this step's reward included
    episode_length_N: npt.NDArray[np.int64]  # likewise, in steps
    terminal_obs_NYXP: npt.NDArray[np.uint8]  # the ended episode's last frame; meaningful where one ended

    @property
    def end_N(self) -> npt.NDArray[np.bool_]:
        """What the world model learns as an end: the game is over or a life is lost. Not a cut by the frame cap."""
        return self.terminated_N | self.life_lost_N

    @property
    def over_N(self) -> npt.NDArray[np.bool_]:
        """Whether the episode is over, by the game or by the frame cap, and a new one has begun."""
        return self.terminated_N | self.truncated_N


class AnyCollector(Protocol):
    """N games side by side. Every collector equals `GymCollector` unless it says otherwise."""

    name: str
    num_envs: int
    num_actions: int
    obs_NYXP: npt.NDArray[np.uint8]  # the newest observation
    restored_exactly: bool  # whether the last load_state_dict arrived at the very state that was saved

    def reset(self, seed: int, out: Frames | None = None) -> npt.NDArray[np.uint8]:
        """Start every game anew; gives obs_NYXP. `out`: as in `send`."""

    def send(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> None:
        """Begin one step of every environment.

        Args:
            action_N: indices into the game's action set, any integer dtype.
            out: where observations are written, uint8 [N, Y, X, P] in host memory, NumPy or torch, pinned or not, each
                frame contiguous; kept alive until `recv`. By default the collector's own memory.

        Raises:
            ValueError: for an invalid action or an `out` that does not fit, before any game steps.
        """

    def recv(self) -> Steps:
        """Wait for the step that `send` began. Ended games have been reset already."""

    def step(self, action_N: npt.NDArray[np.int64], out: Frames | None = None) -> Steps:
        """`send` and `recv` in one."""
        self.send(action_N, out)
        return self.recv()

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened; plain values and arrays."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` of a collector of the same kind gave."""


def checked_actions(action_N: npt.NDArray[np.int64], num_envs: int, num_actions: int) -> npt.NDArray[np.int64]:
    """The actions as int64. Raises ValueError, saying what came, unless there is one for each environment."""
    try:
        action_N = np.asarray(action_N)
    except (RuntimeError, TypeError) as error:  # a torch tensor with a gradient, or on a GPU
        raise ValueError(f"want {num_envs} integer actions in host memory; got {type(action_N).__name__}") from error
    if action_N.shape != (num_envs,) or not np.issubdtype(action_N.dtype, np.integer):
        raise ValueError(f"want {num_envs} integer actions; got {action_N.dtype} {action_N.shape}")
    if action_N.min() < 0 or action_N.max() >= num_actions:
        raise ValueError(f"want actions in [0, {num_actions}); got {action_N.tolist()}")
    return action_N.astype(np.int64)


def checked_out(out: Frames, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The caller's memory as a NumPy array that shares it.

    Raises:
        ValueError: unless it is writable uint8 of that shape in host memory, every frame contiguous.
    """
    wanted = f"out, writable uint8 {list(shape)} in host memory, frames contiguous"
    if isinstance(out, torch.Tensor):
        if out.device.type != "cpu" or out.requires_grad or out.is_conj() or out.layout != torch.strided:
            raise ValueError(f"want {wanted}; got a {out.dtype} {out.layout} tensor on {out.device}")
        if out.dtype != torch.uint8:
            raise ValueError(f"want {wanted}; got {out.dtype} {list(out.shape)}")
        # A tensor whose storage was shrunk still claims its shape; once NumPy has it, torch shrinks it no more.
        end = out.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(out.shape, out.stride(), strict=True))
        if out.numel() and end > out.untyped_storage().nbytes():
            raise ValueError(f"want {wanted}; got {list(out.shape)} on {out.untyped_storage().nbytes()} bytes")
        out = out.numpy()
    if not isinstance(out, np.ndarray):
        raise ValueError(f"want {wanted}, of NumPy or torch; got {type(out).__name__}")
    if out.dtype != np.uint8 or out.shape != shape or not out.flags.writeable:
        what = "read-only " if not out.flags.writeable else ""
        raise ValueError(f"want {wanted}; got {what}{out.dtype} {list(out.shape)}")
    frame = int(np.prod(shape[1:]))
    if not out[0].flags.c_contiguous or (shape[0] > 1 and out.strides[0] < frame):
        raise ValueError(f"want {wanted}; got strides {out.strides}")
    return out


def check_kind(state: dict[str, Any], collector: object) -> None:
    """Raise InputError unless the state is of this kind of collector."""
    kind = type(collector).__name__
    if state.get("collector") != kind:
        raise InputError(f"want the state of {kind}; got that of {state.get('collector')}: resume with that one")
