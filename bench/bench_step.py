"""A training step at full size (preset `storm`, 18 actions), phase by phase, in every form that this machine runs.

Cases are `<phase>-<form>`. Phases: act, append, model, imagine, agent and whole, which is all of them. Forms, by the
names that -k selects; tables say what they are (LABELS):

    reference   on a GPU eager PyTorch on the kernels' definitions; on a CPU in float32
    kernels     eager, Triton's kernels (GPU)
    captured    four CUDA graphs: --compile, ours on a GPU
    compiled    on a GPU the definitions, the passes of acting and of the updates through torch.compile; on a CPU
                --compile, which is ours there: bf16 in channels_last where the processor has it
    released    the authors' code, in bf16 as released; released_fp32 without its autocast (CPU)

All forms take their steps in turn within a round, on a CPU each in a process of its own (apart.py). On a GPU the phases
are timed between waits for the device, and `whole` is a run of steps without any, a second long or more. The roof of a
phase is what work.py counts. Before anything is timed, each form of ours makes two small steps from the same weights
and draws, whose losses and gradients are to be the reference's; of the released code the golden tests hold the
equality.
"""

import math
import sys
import time
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.conftest import Show
from bench.instrument import machine
from bench.instrument.apart import Apart, Calls, Here
from bench.instrument.forms import IS_GPU, in_forms
from bench.instrument.harness import Rounds, quartiles
from bench.instrument.ours import ACTIONS, Ours
from bench.instrument.released import Released, why_absent
from bench.instrument.timer import wait
from bench.instrument.work import phase_costs
from storm_fast.config import Config, preset
from storm_fast.engine.precision import Precision, choose
from storm_fast.kernels import backend
from storm_fast.kernels.cost import Cost

PHASES = ("act", "append", "model", "imagine", "agent")
LABELS = (
    {
        "reference": "definitions, eager",
        "compiled": "definitions, torch.compile",
        "kernels": "kernels, eager",
        "captured": "ours (--compile)",
        "released": "released in bf16",
    }
    if IS_GPU
    else {
        "reference": "reference in float32",
        "compiled": "ours (--compile)",
        "released": "released in bf16",
        "released_fp32": "released in float32",
    }
)
FORMS = tuple(LABELS)
OURS = tuple(form for form in FORMS if not form.startswith("released"))  # the last is what training runs
PARTIAL = ("compiled",) if IS_GPU else ()
PARTLY = "imagination has a graph for each position of its cache, which torch.compile would make one by one"
PLACE: type[Here | Apart] = Here if IS_GPU else Apart
WARMUP = 2 if IS_GPU else 3  # steps: a GPU's first compiles and captures; on a CPU the heap grows until the third
FREE_STEPS, WINDOW_S = 10, 1.0  # steps of a round of `whole` on a GPU, and seconds: the more of both
COMPARED = ("model/total", "model/reward", "model/kl", "agent/value", "agent/entropy")
AGREEMENT = 0.02
"""largest relative difference of these losses"""
WORST, MEDIAN, TOGETHER = 0.8, 0.25, 0.15
"""of the gradients of a parameter, of half of them, and of all together; one that is missing is off by 1"""


def config_of(form: str, name: str = "storm") -> Config:
    """The configuration of a form of ours, of a preset."""
    kernels: backend.Backend = "triton" if form in ("kernels", "captured") else "reference"
    chosen = preset(name)
    loop = replace(chosen.loop, capacity=2000)
    captures = form == "captured" or (form == "compiled" and not IS_GPU)
    return replace(chosen, kernels=kernels, compile=captures, loop=loop)


def ours_in(form: str, config: Config) -> Ours:
    """Ours in one form."""
    ours = Ours(config, precision_of(form))
    if form == "compiled" and IS_GPU:
        # All perceptrons share one `forward`, and every module, shape and mode of gradients is one more variant of it;
        # beyond eight torch.compile would run the rest uncompiled, and say so in a warning alone.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        model, agent = ours.t.world_model, ours.t.agent
        model.encoder.folded = torch.compile(model.encoder.folded, dynamic=False)  # not a pass that .compile knows
        for module in (model.encoder, model.decoder, model.transformer, model.reward_head, model.end_head, agent):
            for part in [module] if module is not agent else agent.children():
                part.compile(dynamic=False)
    return ours


def calls_of(form: str, name: str = "storm") -> Calls:
    """The phases of a form, of a preset where it is ours, made ready to run in this process."""
    if form.startswith("released"):
        dtype = torch.float32 if form == "released_fp32" else torch.bfloat16
        return Released(precision_of(form).device, ACTIONS, dtype).calls
    ours = ours_in(form, config_of(form, name))

    def run(phase: str) -> None:
        with backend.using(ours.backend):
            ours.calls[phase]()

    return {phase: partial(run, phase) for phase in ours.calls}


def phases_of(form: str) -> tuple[str, ...]:
    """What a form has."""
    return tuple(p for p in (*PHASES, "whole") if form not in PARTIAL or p not in ("imagine", "whole"))


def precision_of(form: str) -> Precision:
    """On a CPU the reference is exact."""
    return choose("auto", "fp32" if form == "reference" and not IS_GPU else "auto")


class SmallSteps(NamedTuple):
    """What two small steps from the same weights and draws leave, without dropout."""

    first: dict[str, Tensor]
    """Adam's first moments after one step: the gradients, in proportion"""
    second: dict[str, Tensor]
    losses: dict[str, float]


@cache
def small_steps(form: str) -> SmallSteps:
    """Of a form of ours; under capture the second step is a replay."""
    config = config_of(form)
    model = replace(config.model, batch=4, length=16, dropout=0.0)
    imagine = replace(config.imagine, imagine_batch=32, horizon=4)
    ours = ours_in(form, replace(config, model=model, imagine=imagine))
    moments = []
    with backend.using(ours.backend):
        for _ in range(2):
            for phase in ("model", "imagine", "agent"):
                ours.calls[phase]()
            moments.append(
                {
                    f"{kind}.{name}": optimizer.adam.state[parameter]["exp_avg"].clone()
                    for kind, module, optimizer in (
                        ("world_model", ours.t.world_model, ours.t.model_optimizer),
                        ("agent", ours.t.agent, ours.t.agent_optimizer),
                    )
                    for name, parameter in module.named_parameters()
                    if parameter in optimizer.adam.state
                }
            )
    return SmallSteps(moments[0], moments[1], ours.t.means.pop())


def fault(form: str) -> str | None:
    """What of a form's small steps differs from the reference's; None where nothing does.

    In bf16 some latents and actions are drawn otherwise than in float32, and the gradients of so small a batch are as
    noisy as that: by half for the worst parameter, by 9 % for the median one, by 4 % for all together.
    """
    want, got = small_steps("reference"), small_steps(form)
    for name in COMPARED:
        if not abs(got.losses[name] - want.losses[name]) <= AGREEMENT * abs(want.losses[name]):
            return f"{name} is {got.losses[name]:.5g}, not {want.losses[name]:.5g}"
    off = {name: float((got.first[name] - x).norm() / x.norm().clamp_min(1e-30)) for name, x in want.first.items()}
    worst = max(off, key=lambda name: (off[name] != off[name], off[name]))  # a NaN first
    if not off[worst] <= WORST:
        return f"the gradient of {worst} is off by {off[worst]:.2g} of its norm"
    if not float(np.median(list(off.values()))) <= MEDIAN:
        return f"the gradients of half of the parameters are off by {np.median(list(off.values())):.2g} and more"
    whole = sum(float(x.norm()) ** 2 for x in want.second.values()) ** 0.5
    error = sum(float((got.second[name] - x).norm()) ** 2 for name, x in want.second.items()) ** 0.5 / whole
    if not error <= TOGETHER:
        return f"the gradients of the second step are off by {error:.2g}"
    return None


def rounds_of(quick: bool) -> dict[str, int]:
    """How often each form is timed; on a CPU the definitions, with which nobody would train, the least."""
    if IS_GPU:
        return dict.fromkeys(FORMS, 5 if quick else 10)
    return dict.fromkeys(FORMS, 2 if quick else 5) | {"reference": 2}


class Step:
    """All rounds of all forms, interleaved."""

    def __init__(self, quick: bool) -> None:
        absent, why = {}, why_absent()
        if why is not None:
            absent |= {form: why for form in FORMS if form.startswith("released")}
        if quick:
            absent |= {form: "left out by --quick" for form in FORMS if form != OURS[-1]}
        costs = phase_costs(config_of(OURS[-1]))
        costs["whole"] = Cost(sum(cost.flops for cost in costs.values()), sum(cost.bytes for cost in costs.values()))
        wrong: dict[str, str] = {}
        failed: dict[str, str] = {}
        self.found = {
            phase: Rounds(
                OURS[-1],
                absent=dict.fromkeys(PARTIAL if phase not in phases_of("compiled") else (), PARTLY) | absent,
                wrong=wrong,
                failed=failed,
                cost=cost,
                beside={form: {"label": LABELS[form]} for form in FORMS},
            )
            for phase, cost in costs.items()
        }
        whole = self.found["whole"]
        forms: dict[str, Any] = {}
        for form in (form for form in FORMS if form not in absent):
            what = whole.attempt(form, lambda form=form: fault(form)) if form in OURS else None
            if what is not None:
                wrong[form] = what
            elif form not in failed:
                forms[form] = whole.attempt(form, lambda form=form: self._started(form))
        forms = {form: made for form, made in forms.items() if form not in failed}
        small_steps.cache_clear()
        rounds = rounds_of(quick)
        random = np.random.default_rng(0)
        for i in range(max(rounds.values())):
            for form in random.permutation(sorted(forms)).tolist():
                if i < rounds[form] and form not in failed:
                    whole.attempt(form, lambda form=form: self._round(form, forms[form]))
        for form in failed:  # an earlier round's times would tell of a form that cannot be trusted
            for phase in self.found.values():
                phase.seconds.pop(form, None)
        for form, made in forms.items():
            if IS_GPU and form not in failed:
                self._look(form, made)
            made.close()

    def _started(self, form: str) -> Here | Apart:
        """Build a form and run it for some steps, in which it compiles, captures and allocates."""
        made = PLACE(calls_of, form, warmup=WARMUP)
        self.found["whole"].beside[form]["peak_mb"] = made.added_mb
        return made

    def _round(self, form: str, made: Here | Apart) -> None:
        made.timed(PHASES[0])  # others have had the processor, for half a minute on a CPU: its caches are theirs
        timed = {phase: made.timed(phase) for phase in PHASES if phase in phases_of(form)}
        took, host = ({phase: seconds[i] for phase, seconds in timed.items()} for i in range(2))
        if "whole" in phases_of(form):
            took["whole"], host["whole"] = sum(took.values()), sum(host.values())
            if isinstance(made, Here) and IS_GPU:
                took["whole"] = self._free(form, made, took["whole"])
        for phase, s in took.items():
            self.found[phase].seconds.setdefault(form, []).append(s)
            if IS_GPU:  # of the last round: what the host is kept from, until a phase's launches have left it
                self.found[phase].beside[form]["host_ms"] = 1e3 * host[phase]

    def _free(self, form: str, made: Here, apart_s: float) -> float:
        """Seconds of a step among steps without a wait, as many as the counter of energy needs."""
        beside = self.found["whole"].beside[form]
        beside["phases_apart_ms"] = 1e3 * apart_s
        steps = max(FREE_STEPS, math.ceil(WINDOW_S / apart_s))
        start_j, start_s = machine.joules(), time.perf_counter()
        made.run(PHASES * steps)
        wait()
        free_s = (time.perf_counter() - start_s) / steps
        used_j = (machine.joules() - start_j) / steps
        if not math.isnan(used_j):
            beside["joules"] = used_j
        return free_s

    def _look(self, form: str, made: Here) -> None:
        """The state of a GPU at work, and the share of a step that it is idle."""
        made.run([phase for phase in phases_of(form) if phase != "whole"] * FREE_STEPS)
        machine.sample()  # while the device works
        wait()
        if "whole" in phases_of(form):
            try:
                self.found["whole"].beside[form]["idle_share"] = self._idle_share(form, made)
            except RuntimeError as error:  # a profiler that may not look takes no times away
                sys.stderr.write(f"no share of a GPU's idle time for {form}: {error}\n")

    def _idle_share(self, form: str, made: Here) -> float:
        """How much of a step the device does nothing: what its kernels take, over what a free step takes."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            made.run(PHASES)
            wait()
        kernels = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
        busy_s = sum(event.self_device_time_total for event in kernels if not event.is_user_annotation) / 1e6
        return 1 - busy_s / quartiles(self.found["whole"].seconds[form])[1] if busy_s else float("nan")


@pytest.fixture(scope="module")
def step(quick: bool) -> Step:
    """Measured once, for all cases."""
    return Step(quick)


@in_forms(*FORMS)
@pytest.mark.parametrize("phase", [*PHASES, "whole"])
def bench_step(show: Show, step: Step, phase: str, form: str) -> None:
    show(f"step: {phase}", form, step.found[phase])
