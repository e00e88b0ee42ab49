"""The four phases of a training step, calls without arguments: eager or, under --compile on a GPU, a CUDA graph each.

    act      seen frames -> actions        model    one update of the world model
    imagine  contexts -> a trajectory      agent    the updates of actor and critic on it

What one phase leaves for the next stays in this object. Every phase draws from the run's one generator, and dropout
from torch's own, in the order of the calls, so an eager and a captured run compute the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storm_fast.config import Config
from storm_fast.data.replay import Replay
from storm_fast.engine import learn
from storm_fast.engine.capture import Captured, unchanged
from storm_fast.engine.precision import Precision
from storm_fast.engine.training import Training
from storm_fast.kernels import ahead
from storm_fast.model.agent import Trajectory
from storm_fast.model.imagine import Context


class Phases:
    """The phases of one run."""

    def __init__(self, config: Config, t: Training, demonstration: Replay | None, precision: Precision) -> None:
        self._config, self._t, self._demonstration, self._precision = config, t, demonstration, precision
        N, device = t.collector.num_envs, precision.device
        self.seen_NYXP = torch.zeros(N, *t.spec.frame, dtype=torch.uint8, device=device)
        self.action_N = torch.zeros(N, dtype=torch.int64, device=device)
        # The latents of the last world-model update, and the last rollout: between graphs, memory of the pool of the
        # one that wrote them. No two graphs share a pool and a pool reuses nothing that is referred to when its capture
        # ends, as these are by the two attributes alone; so only the next replay of that graph changes them.
        self._context: Context | None = None
        self._trajectory: Trajectory | None = None
        is_cuda = device.type == "cuda"
        # Memory of the host that the device reads and writes by itself, so that copies do not make the host wait: what
        # a step earned and ended, and the actions with the event after which they are there. That event comes after
        # every copy of the step before, so what these hold may then be overwritten.
        self._reward_host_N, self._reward_array_N = _host_memory(N, torch.float32, is_cuda)
        self._end_host_N, self._end_array_N = _host_memory(N, torch.bool, is_cuda)
        self._over_host_N, self._over_array_N = _host_memory(N, torch.bool, is_cuda)
        self._episode_host_N, self._episode_array_N = _host_memory(N, torch.int64, is_cuda)
        self._action_host_N, self._action_array_N = _host_memory(N, torch.int64, is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None
        self._is_compiled = False
        self._act = self._launched("act", self.run_act)
        self._model = self._launched("model", self.run_model)
        self._imagine = self._launched("imagine", self.run_imagine)
        self._agent = self._launched("agent", self.run_agent)

    def _launched(self, name: str, call: Callable[[], None]) -> Callable[[], None]:
        if not (self._config.compile and self._precision.device.type == "cuda"):
            return call
        own = torch.cuda.default_generators[torch.cuda.current_device()]  # dropout's; build.prepare chose the device
        return Captured(name, call, self.state, [self._t.generator, own], self._compile_once)

    def _compile_once(self) -> None:
        if not self._is_compiled:
            self.compile_ahead()
            self._is_compiled = True

    def compile_ahead(self) -> None:
        """Compile the kernels of all phases side by side, so that none waits for another's; nothing else changes."""
        # The draws are restored too. On a CPU, where a test does this, torch's one generator is that of dropout.
        generators = [self._t.generator, torch.default_generator]
        if self._precision.device.type == "cuda":
            generators[1] = torch.cuda.default_generators[torch.cuda.current_device()]
        left = self._context, self._trajectory
        with unchanged(self.state, generators), ahead.compiling():
            for phase in (self.run_act, self.run_model, self.run_imagine, self.run_agent):
                phase()
        self._context, self._trajectory = left

    def see(self, obs_NYXP: Tensor) -> None:
        """Copy the newest frames to the training device before the games overwrite them."""
        self.seen_NYXP.copy_(obs_NYXP, non_blocking=True)

    def explore(self) -> npt.NDArray[np.int64]:
        """Uniformly random actions."""
        t = self._t
        u_N = torch.rand(self.action_N.shape, generator=t.generator, device=self._precision.device)
        self.action_N.copy_(u_N * t.spec.num_actions)
        return self._to_host()

    def act(self) -> npt.NDArray[np.int64]:
        """The policy's actions on what was seen last."""
        self._act()
        return self._to_host()

    def append(self, reward_N: npt.NDArray[np.float32], end_N: npt.NDArray[np.bool_]) -> None:
        """Append frames, actions and rewards to the replay; `end_N` is what the world model learns as an end."""
        self._reward_array_N[:], self._end_array_N[:] = reward_N, end_N
        self._episode_array_N[:] = self._t.episodes.number_N
        step = self.seen_NYXP, self.action_N, self._reward_host_N, self._end_host_N, self._episode_host_N
        self._t.replay.append(*step)

    def end_episodes(self, over_N: npt.NDArray[np.bool_]) -> None:
        """Number the episodes that begin; clear the contexts of ended ones where `acting_at_end` is "clear"."""
        self._t.episodes.end(over_N)
        if self._config.loop.acting_at_end == "clear":
            self._over_array_N[:] = over_N
            self._t.policy.end_episodes(self._over_host_N.to(self._precision.device, non_blocking=True))

    def update_model(self) -> None:
        """One update of the world model; its metrics join the means."""
        self._model()
        self._t.model_updates += 1

    def imagine(self) -> None:
        """One rollout from fresh contexts, or from the last world-model update's."""
        self._imagine()

    def update_agent(self) -> None:
        """The agent's updates on the last rollout; their metrics join the means."""
        self._agent()

    def run_act(self) -> None:
        """The phase itself, as are the three below: what is captured."""
        t = self._t
        t.world_model.eval()
        with self._narrow(), self._precision.autocast():
            self.action_N.copy_(t.policy.act(self.seen_NYXP, t.generator))
        t.policy.remember(self.seen_NYXP, self.action_N)

    def run_model(self) -> None:
        """See `update_model`."""
        t, m = self._t, self._config.model
        batch = learn.sample(t.replay, self._demonstration, m.batch, m.demonstration_batch, m.length, t.generator)
        metrics, self._context = learn.update_world_model(
            t.world_model, t.model_optimizer, batch, t.generator, self._precision
        )
        t.means.add("model", metrics)

    def run_imagine(self) -> None:
        """See `imagine`."""
        t, i = self._t, self._config.imagine
        if i.context_source == "model_batch":
            assert self._context is not None  # the configuration makes an agent update follow one of the model
            context = learn.cut_context(self._context, i.imagine_batch, i.context, t.generator)
        else:
            sizes = (i.imagine_batch, i.imagine_demonstration_batch, i.context)
            with self._narrow():
                context = learn.draw_context(
                    t.world_model, t.replay, self._demonstration, *sizes, t.generator, self._precision
                )
        with self._narrow():
            self._trajectory = learn.imagine(t.world_model, t.agent, context, i, t.generator, self._precision)

    def run_agent(self) -> None:
        """See `update_agent`."""
        t = self._t
        assert self._trajectory is not None
        for metrics in learn.update_agent(t.agent, t.agent_optimizer, self._trajectory, self._precision):
            t.means.add("agent", metrics)

    @contextmanager
    def _narrow(self) -> Iterator[None]:
        """The bf16 copies of both networks, where there are any, stand in the place of their weights."""
        with self._t.model_optimizer.standing(), self._t.agent_optimizer.standing():
            yield

    def state(self) -> list[Tensor]:
        """Every tensor that a phase changes, except what one phase leaves for another."""
        t = self._t
        modules = [*t.world_model.state_dict(keep_vars=True).values(), *t.agent.state_dict(keep_vars=True).values()]
        policy = [t.policy.obs_NCYXP, t.policy.action_NC, t.policy.length_N]
        return [
            *modules,
            *policy,
            *t.means.sums.values(),
            *t.model_optimizer.tensors(),
            *t.agent_optimizer.tensors(),
            self.action_N,
            *t.model_optimizer.copies(),
            *t.agent_optimizer.copies(),
        ]

    def _to_host(self) -> npt.NDArray[np.int64]:
        """The actions, for the games: one copy, and the host's one wait of a step."""
        self._action_host_N.copy_(self.action_N, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
            self._copied.synchronize()
        return self._action_array_N


def _host_memory(N: int, dtype: torch.dtype, pinned: bool) -> tuple[Tensor, npt.NDArray[Any]]:
    """N numbers as a tensor and as an array of the same memory."""
    host_N = torch.zeros(N, dtype=dtype, device="cpu", pin_memory=pinned)
    return host_N, host_N.numpy()
