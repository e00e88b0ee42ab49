"""A training step at full size (preset `storm`, 18 actions), phase by phase, in every form that this machine runs.

Cases are `<phase>-<form>`. Phases: act, append, model, imagine, agent and whole, which is all of them. Forms:

    reference   on a GPU eager PyTorch on the kernels' definitions; on a CPU in float32
    kernels     eager, Triton's kernels (GPU)
    captured    four CUDA graphs: --compile (GPU)
    compiled    what training runs on a CPU: bf16 in channels_last where the processor has it
    released    the authors' code, in bf16 as released; released_fp32 without its autocast (CPU)

All forms take their steps in turn within a round, so that a machine that drifts drifts for all; what pytest-benchmark
then times are those rounds, played back. On a GPU the phases are timed between waits for the device, and `whole` is a
run of steps without any. Each case states the arithmetic of its products, the share of the floor (that arithmetic at
the rate which large products reach here) and what every other form takes over it.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ceilings import measure
from bench.conftest import device_timer, playing_back
from bench.forms import DEVICE
from bench.released import Released, why_absent
from storm_fast import build
from storm_fast.checkpoint import Training
from storm_fast.config import preset
from storm_fast.kernels import backend
from storm_fast.metrics import MeanMetrics
from storm_fast.optimizer import Optimizer
from storm_fast.phases import Phases
from storm_fast.policy import Policy
from storm_fast.precision import Precision, choose
from storm_fast.replay import Replay
from storm_fast.world_model import FRAME

ACTIONS = 18
IS_GPU = DEVICE.type == "cuda"
FORMS = (
    ["reference", "kernels", "captured", "released"]
    if IS_GPU
    else ["reference", "compiled", "released", "released_fp32"]
)
PHASES = ("act", "append", "model", "imagine", "agent")
ROUNDS = 20 if IS_GPU else 3
FREE_STEPS = 20  # steps of a round of `whole` on a GPU


class Ours:
    """A run of ours in one form, without games."""

    def __init__(self, form: str, precision: Precision) -> None:
        kernels = "reference" if form == "reference" or not IS_GPU else "triton"
        config = replace(preset("storm"), kernels=kernels, compile=form in ("captured", "compiled"))
        self.backend: backend.Backend = build.resolve_kernels(config.kernels, precision.device)
        build.prepare(config, precision)
        world_model, agent = build.networks(config, ACTIONS, precision)
        self.t = Training(
            world_model,
            agent,
            Optimizer(world_model, config.model.model_lr, 1e-8, config.model.model_clip),
            Optimizer(agent, config.agent.agent_lr, 1e-5, config.agent.agent_clip),
            Replay(2000, 1, FRAME, DEVICE),
            SimpleNamespace(num_envs=1, num_actions=ACTIONS),  # type: ignore[arg-type]  # no games
            Policy(world_model, agent, config.loop, 1, DEVICE),
            MeanMetrics(DEVICE),
            torch.Generator(DEVICE).manual_seed(0),
        )
        self.phases = Phases(config, self.t, None, precision)
        self.obs_1YXP = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *FRAME), dtype=np.uint8))
        if IS_GPU:
            self.obs_1YXP = self.obs_1YXP.pin_memory()
        for _ in range(200):
            self.append()

    def act(self) -> None:
        """One action from 16 frames."""
        self.phases.see(self.obs_1YXP)
        self.phases.act()

    def append(self) -> None:
        """One step into the replay."""
        self.phases.append(np.zeros(1, np.float32), np.zeros(1, np.bool_))

    def model(self) -> None:
        """One world-model update on 16 x 64."""
        self.phases.update_model()

    def imagine(self) -> None:
        """One rollout of 1024 x (8 + 16)."""
        self.phases.imagine()

    def agent(self) -> None:
        """One agent update on that rollout."""
        self.phases.update_agent()


class _Measured:
    """Every round's seconds by phase and form, and what else a form takes."""

    def __init__(self) -> None:
        self.precision = choose("auto", "auto")
        self.rate = measure(DEVICE, self.precision.dtype).flops_per_s
        why = why_absent()
        self.absent = {form: why for form in FORMS if form.startswith("released")} if why else {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.beside: dict[str, dict[str, float]] = {}  # by form: of a free run of whole steps
        forms: dict[str, Any] = {}
        exact = choose("auto", "fp32")
        for form in (form for form in FORMS if form not in self.absent):
            if form.startswith("released"):
                dtype = torch.float32 if form == "released_fp32" else torch.bfloat16
                forms[form] = Released(DEVICE, ACTIONS, dtype)
            else:
                forms[form] = Ours(form, exact if form == "reference" and not IS_GPU else self.precision)
        self.flops = self._flops(forms["reference"])
        random = np.random.default_rng(0)
        for turn in range(ROUNDS + 1):
            for form in sorted(forms, key=lambda _: random.random()):
                with backend.using(getattr(forms[form], "backend", "auto")):
                    self._round(form, forms[form], keep=turn > 0)

    @staticmethod
    def _flops(reference: Ours) -> dict[str, int]:
        """Of the products and convolutions of each phase, forward and backward."""
        found = {}
        with backend.using("reference"):
            for phase in PHASES:
                with FlopCounterMode(display=False) as counter:
                    getattr(reference, phase)()
                found[phase] = counter.get_total_flops()
        return found | {"whole": sum(found.values())}

    def _round(self, name: str, form: Any, keep: bool) -> None:
        took = {}
        for phase in PHASES:
            start_s = device_timer()
            getattr(form, phase)()
            took[phase] = device_timer() - start_s
        took["whole"] = sum(took.values())
        if IS_GPU:
            start_s, start_j = device_timer(), _joules()
            for _ in range(FREE_STEPS):
                for phase in PHASES:
                    getattr(form, phase)()
            phases_s = took["whole"]
            took["whole"] = (device_timer() - start_s) / FREE_STEPS
            self.beside[name] = {
                "phases_apart_ms": 1e3 * phases_s,
                "joules": (_joules() - start_j) / FREE_STEPS,
            }
        if keep:
            for phase, s in took.items():
                self.seconds.setdefault((phase, name), []).append(s)


def _joules() -> float:
    """What the GPU has used since its driver was loaded; NaN where the driver does not tell."""
    import pynvml  # here, since machines without a GPU have no driver library to load

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError:
        return float("nan")


@pytest.fixture(scope="module")
def measured() -> _Measured:
    """All rounds of all forms, interleaved."""
    return _Measured()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("phase", [*PHASES, "whole"])
def bench_step(benchmark: Any, measured: _Measured, phase: str, form: str) -> None:
    if form in measured.absent:
        pytest.skip(f"absent: {measured.absent[form]}")
    seconds = np.array(measured.seconds[phase, form])
    median = float(np.median(seconds))
    benchmark.group = f"step: {phase}"
    benchmark.extra_info |= {
        "device": str(measured.precision),
        "tflop": measured.flops[phase] / 1e12,
        "share_of_floor": measured.flops[phase] / measured.rate / median,
        # Of each round's own, since a shared machine changes more from round to round than within one.
        "over_this": {
            other: float(np.median(np.array(measured.seconds[phase, other]) / seconds))
            for other in FORMS
            if (phase, other) in measured.seconds
        },
    } | (measured.beside.get(form, {}) if phase == "whole" else {})
    with playing_back(seconds.tolist()) as play:
        benchmark.pedantic(play, rounds=len(seconds))
