"""The unavoidable work of a training step's phases, for the roofline."""

import math
from dataclasses import replace
from functools import cache

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.instrument.ours import SPEC, Ours
from storm_fast.config import Config
from storm_fast.engine.precision import choose
from storm_fast.kernels import backend
from storm_fast.kernels.cost import Cost

_FRAME_BYTES = math.prod(SPEC.frame)
_UPDATED_BYTES = 6 * 4  # of a weight that Adam updates: it and its two moments, read and written


def phase_costs(config: Config) -> dict[str, Cost]:
    """Of each phase: the operations of its products and convolutions, backward too, and the bytes that must move.

    Those are each weight once, or what an update reads and writes of it; each frame once; an imagined state once, in
    bf16. A product's operations are counted on the definitions, of one sequence: all others have as many.
    """
    m, i = config.model, config.imagine
    one = replace(config, kernels="reference", compile=False, model=replace(m, batch=1, demonstration_batch=0))
    flops, weights = _of_one(replace(one, imagine=replace(i, imagine_batch=1), loop=replace(one.loop, capacity=200)))
    state_bytes = 2 * (i.horizon + 1) * (m.latents * m.classes + m.width)
    return {
        "act": Cost(flops["act"], 4 * weights["act"] + config.loop.acting_context * _FRAME_BYTES),
        "append": Cost(0, 2 * (_FRAME_BYTES + 8 + 4 + 1)),  # and action, reward, end
        "model": Cost(m.batch * flops["model"], _UPDATED_BYTES * weights["model"] + m.batch * m.length * _FRAME_BYTES),
        "imagine": Cost(
            i.imagine_batch * flops["imagine"],
            4 * weights["imagine"] + i.imagine_batch * (i.context * _FRAME_BYTES + state_bytes),
        ),
        "agent": Cost(
            i.imagine_batch * flops["agent"], _UPDATED_BYTES * weights["agent"] + i.imagine_batch * state_bytes
        ),
    }


@cache
def _of_one(config: Config) -> tuple[dict[str, int], dict[str, int]]:
    """Operations of each phase, and how many weights it reads or updates."""
    with backend.using("auto"):  # what building chooses is not for others
        ours = Ours(config, choose("cpu", "fp32"))
        flops = {}
        for phase, call in ours.calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            flops[phase] = counter.get_total_flops()
    model, agent = ours.t.world_model, ours.t.agent
    acting = [model.encoder, model.posterior, model.transformer, model.prior, agent.actor]
    read = {"act": acting, "imagine": [*acting, model.reward_head, model.end_head], "model": [model], "agent": [agent]}
    return flops, {phase: _count(modules) for phase, modules in read.items()}


def _count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
