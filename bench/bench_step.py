"""The parts of one training step at full size (preset `storm`, 18 actions): `pytest bench/ --benchmark-only`.

Cases are named <form>-<phase>: the eager step on the references and, on a GPU, on the kernels. A CPU runs three rounds
of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from bench.forms import FORMS
from storm_fast import build, learn
from storm_fast.config import preset
from storm_fast.kernels import backend
from storm_fast.optimizer import Optimizer
from storm_fast.policy import Policy
from storm_fast.precision import choose
from storm_fast.replay import Replay
from storm_fast.world_model import FRAME

ACTIONS = 18


class Step:
    """Everything a step touches, and each phase as a call."""

    def __init__(self, form: Literal["reference", "triton"]) -> None:
        self.config, self.precision = replace(preset("storm"), kernels=form), choose("auto", "auto")
        build.prepare(self.config, self.precision)
        device = self.precision.device
        self.world_model, self.agent = build.networks(self.config, ACTIONS, self.precision)
        m, a = self.config.model, self.config.agent
        self.model_optimizer = Optimizer(self.world_model, m.model_lr, 1e-8, m.model_clip)
        self.agent_optimizer = Optimizer(self.agent, a.agent_lr, 1e-5, a.agent_clip)
        self.replay = Replay(2000, 1, FRAME, device)
        self.policy = Policy(self.world_model, self.agent, self.config.loop, 1, device)
        self.g = torch.Generator(device).manual_seed(0)
        self.obs_1YXP = torch.randint(256, (1, *FRAME), generator=self.g, dtype=torch.uint8, device=device)
        for _ in range(200):
            self.append()
        self.trajectory = self.imagine()

    def act(self) -> None:
        """One action from 16 frames."""
        self.world_model.eval()
        with self.precision.autocast():
            action_1 = self.policy.act(self.obs_1YXP, self.g)
        self.policy.remember(self.obs_1YXP, action_1)

    def append(self) -> None:
        """One step into the replay."""
        self.replay.append(self.obs_1YXP, torch.zeros(1), torch.zeros(1), torch.zeros(1))

    def model(self) -> None:
        """One world-model update on 16 x 64."""
        batch = learn.sample(self.replay, None, self.config.model.batch, 0, self.config.model.length, self.g)
        learn.update_world_model(self.world_model, self.model_optimizer, batch, self.g, self.precision)

    def imagine(self) -> learn.Trajectory:
        """One rollout of 1024 x (8 + 16)."""
        i = self.config.imagine
        batch = learn.sample(self.replay, None, i.imagine_batch, 0, i.context, self.g)
        context = learn.encode_context(self.world_model, batch, self.g, self.precision)
        return learn.imagine(self.world_model, self.agent, context, i, self.g, self.precision)

    def update(self) -> None:
        """One agent update on that rollout."""
        learn.update_agent(self.agent, self.agent_optimizer, self.trajectory, self.precision)

    def whole(self) -> None:
        """All of a step but the emulator."""
        self.act()
        self.append()
        self.model()
        self.trajectory = self.imagine()
        self.update()


@pytest.fixture(scope="module", params=[form for form in FORMS if form != "compiled"])
def step(request: pytest.FixtureRequest) -> Iterator[Step]:
    with backend.using(backend.chosen()):
        yield Step(request.param)


PHASES: dict[str, Callable[[Step], object]] = {
    "act": Step.act,
    "append": Step.append,
    "model": Step.model,
    "imagine": Step.imagine,
    "agent": Step.update,
    "whole": Step.whole,
}


@pytest.mark.parametrize("phase", PHASES)
def bench_step(benchmark: Any, step: Step, phase: str) -> None:
    rounds = 20 if step.precision.device.type == "cuda" or phase in ("act", "append") else 3
    benchmark.extra_info["device"] = str(step.precision)
    benchmark.pedantic(PHASES[phase], args=(step,), rounds=rounds, warmup_rounds=1)
