"""The replay: a ring of uint8 frames on the training device; a batch is one gather."""

from typing import NamedTuple

import torch
from torch import Tensor

from storm_fast.errors import InputError


class Batch(NamedTuple):
    """B windows of T consecutive steps; all on the training device."""

    obs_BTYXP: Tensor  # uint8, what was seen
    action_BT: Tensor  # int64, what was done on seeing it
    reward_BT: Tensor  # float32, what that earned
    end_BT: Tensor  # bool, whether that ended the episode or lost a life


class Windows(NamedTuple):
    """B windows of T consecutive steps where they lie: frames are gathered where they are used."""

    frames_MYXP: Tensor  # uint8, all that the replay has room for
    index_N: Tensor  # int64 [B * T], a place in each field's first axis
    action_BT: Tensor


class Replay:
    """The newest steps of N environments, first in, first out.

    Memory: 12,288 bytes a step for frames of 64 x 64 x 3, 13 for the rest: 1.23 GB for 100,000 steps;
    8 more where windows are drawn by how recent they are.
    """

    def __init__(
        self,
        capacity: int,
        N: int,
        frame: tuple[int, int, int],
        device: torch.device,
        recent_share: float = 0.0,
        recent_base: float = 1.25,
    ) -> None:
        """Allocate for `capacity` steps in all, capacity // N of each environment; see `windows` for the others."""
        self.rows, self.num_envs = capacity // N, N
        if self.rows < 1:
            raise InputError(f"want a replay of at least one step per environment; got {capacity} over {N}")
        self.obs = torch.zeros(self.rows, N, *frame, dtype=torch.uint8, device=device)
        self.action = torch.zeros(self.rows, N, dtype=torch.int64, device=device)
        self.reward = torch.zeros(self.rows, N, device=device)
        self.end = torch.zeros(self.rows, N, dtype=torch.bool, device=device)
        # The number of each step's episode, counted over all environments, where drawing asks for it.
        self.recent_share, self.recent_base = recent_share, recent_base
        self.episode: Tensor | None = None
        if recent_share > 0:
            self.episode = torch.zeros(self.rows, N, dtype=torch.int64, device=device)
        self.appended = 0  # rows ever appended; row r lies at r % rows
        self._appended = torch.zeros((), dtype=torch.int64, device=device)  # the same, where sampling reads it

    @property
    def _fields(self) -> dict[str, Tensor]:
        """What a batch has of a step, in the order of `Batch`."""
        return {"obs": self.obs, "action": self.action, "reward": self.reward, "end": self.end}

    @property
    def _kept(self) -> dict[str, Tensor]:
        """What is held of a step, under the names that a checkpoint uses."""
        return self._fields | ({} if self.episode is None else {"episode": self.episode})

    def append(
        self,
        obs_NYXP: Tensor,
        action_N: Tensor,
        reward_N: Tensor,
        end_N: Tensor,
        episode_N: Tensor | None = None,
    ) -> None:
        """Add one step of every environment, dropping the oldest when full. Copies; any device.

        Args:
            obs_NYXP: the frames seen.
            action_N: what was done on seeing them.
            reward_N: what that earned.
            end_N: whether that ended the episode or lost a life.
            episode_N: the numbers of the episodes, where `recent_share` asks for them.
        """
        row = self.appended % self.rows
        step = [obs_NYXP, action_N, reward_N, end_N]
        if self.episode is not None:
            if episode_N is None:
                raise ValueError("want the numbers of the episodes in a replay with a recent share; got none")
            step.append(episode_N)
        for field, new in zip(self._kept.values(), step, strict=True):
            field[row].copy_(new, non_blocking=True)
        self.appended += 1
        self._appended += 1

    def __len__(self) -> int:
        """Steps held, over all environments."""
        return min(self.appended, self.rows) * self.num_envs

    def sample(self, B: int, T: int, generator: torch.Generator) -> Batch:
        """B windows of T steps, copied; see `windows`."""
        index_N = self._draw(B, T, generator)
        return Batch(*(f.flatten(0, 1).index_select(0, index_N).unflatten(0, (B, T)) for f in self._fields.values()))

    def windows(self, B: int, T: int, generator: torch.Generator) -> Windows:
        """B windows of T steps, uniform over environments and starts; none spans the ring's seam.

        Of them `recent_share` are drawn with weight recent_base^(number of the start's episode - number of the newest),
        spread evenly, so that each of the agent's shares of a rollout has as many. A window may cross an episode's end.
        Nothing here reads the device from the host.

        Raises:
            ValueError: when fewer than T rows are held.
        """
        index_N = self._draw(B, T, generator)
        action_BT = self.action.flatten(0, 1).index_select(0, index_N).unflatten(0, (B, T))
        return Windows(self.obs.flatten(0, 1), index_N, action_BT)

    def _draw(self, B: int, T: int, generator: torch.Generator) -> Tensor:
        """Places [B * T] of windows."""
        if min(self.appended, self.rows) < T:
            raise ValueError(f"want at least {T} steps per environment to cut a window; got {self.appended}")
        device = self.obs.device
        # Uniforms times a device-side count rather than randint: the bound grows while a captured graph stays.
        u_2B = torch.rand(2, B, generator=generator, device=device)
        held = self._appended.clamp_max(self.rows)
        starts = held - T + 1
        start_B = (u_2B[0] * starts).long().minimum(starts - 1)
        env_B = (u_2B[1] * self.num_envs).long().clamp_max(self.num_envs - 1)
        oldest = self._appended - held
        if self.recent_share > 0:
            row_B, recent_env_B = self._draw_recent(u_2B[0], oldest, starts)
            reach_B = self.recent_share * torch.arange(B + 1, device=device)
            is_recent_B = reach_B[1:].floor() > reach_B[:-1].floor()
            start_B = torch.where(is_recent_B, (row_B - oldest) % self.rows, start_B)
            env_B = torch.where(is_recent_B, recent_env_B, env_B)
        row_BT = (oldest + start_B[:, None] + torch.arange(T, device=device)) % self.rows
        return (row_BT * self.num_envs + env_B[:, None]).flatten()

    def _draw_recent(self, u_B: Tensor, oldest: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and environments of starts, by inverse CDF over all that may be one."""
        assert self.episode is not None
        age_MN = self.episode.max() - self.episode
        place_M = (torch.arange(self.rows, device=self.obs.device) - oldest) % self.rows
        weight_MN = torch.where((place_M < starts)[:, None], self.recent_base ** -age_MN.double(), 0.0)
        reach_K = weight_MN.flatten().cumsum(0)
        # Scaled by what is reached: a draw near 1 must not end behind the last start.
        k_B = torch.searchsorted(reach_K, u_B.double() * reach_K[-1], right=True)
        return k_B // self.num_envs, k_B % self.num_envs

    def mean_frame(self) -> Tensor:
        """The mean over all frames held, float32 in [0, 1], [Y, X, P]."""
        held = min(self.appended, self.rows)
        return self.obs[:held].flatten(0, 1).float().mean(0) / 255

    def rows_since(self, first: int) -> dict[str, Tensor]:
        """Copies of rows `first` to the newest, oldest first, on the host. What a checkpoint writes."""
        if not max(0, self.appended - self.rows) <= first <= self.appended:
            raise ValueError(f"want a row that is still held or the next; got {first} of {self.appended}")
        index = torch.arange(first, self.appended, device=self.obs.device) % self.rows
        return {name: field.index_select(0, index).cpu() for name, field in self._kept.items()}

    def restore(self, first: int, rows: dict[str, Tensor]) -> None:
        """Put back what `rows_since(first)` gave; rows restored later must follow."""
        count = len(rows["action"])
        index = torch.arange(first, first + count, device=self.obs.device) % self.rows
        for name, field in self._kept.items():
            field[index] = rows[name].to(field.device)
        self.appended = first + count
        self._appended.fill_(self.appended)


def concat(batches: list[Batch]) -> Batch:
    """One batch of all windows, in order."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True))) if len(batches) > 1 else batches[0]
