"""Sets up the process and builds the networks that a configuration names; their weights under a checkpoint's names."""

import importlib.util
import math
from typing import Literal

import torch
from torch import Tensor

from storm_fast.config import Config
from storm_fast.engine.allocator import keep_pages
from storm_fast.engine.precision import Precision
from storm_fast.envs import EnvSpec
from storm_fast.errors import InputError
from storm_fast.kernels import backend
from storm_fast.model.agent import Agent
from storm_fast.model.world_model import WorldModel


def prepare(config: Config, precision: Precision) -> None:
    """Set the process up for a configuration, once, before its networks are built.

    Chooses the kernels and the CPU threads. On a CPU it makes the allocator keep its pages. On a GPU it selects the
    device, lets cuDNN time its convolutions, which pays since every call has the same shapes, and keeps float32
    products in float32.
    """
    backend.use(resolve_kernels(config.kernels, precision.device))
    if precision.device.type == "cpu":
        keep_pages()
    else:
        if precision.device.index is not None:
            torch.cuda.set_device(precision.device)
        torch.backends.cudnn.benchmark = True
        if precision.dtype == torch.float32:
            # PyTorch lets cuDNN round the operands of float32 convolutions to 10 bits of mantissa (TF32), three
            # more than bf16 has: that is not what --precision fp32 is for. In bf16 no product has float32 operands.
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at run time
            torch.backends.cuda.matmul.fp32_precision = "ieee"
    if config.threads:
        torch.set_num_threads(config.threads)


def networks(config: Config, spec: EnvSpec, precision: Precision) -> tuple[WorldModel, Agent]:
    """World model and agent on the training device, initialised from the seed."""
    torch.manual_seed(config.seed)
    c = config.model
    features = {
        "latent+hidden": c.latents * c.classes + c.width,
        "latent": c.latents * c.classes,
        "hidden": c.width,
        "reconstruction": math.prod(spec.frame),
    }[config.agent.agent_state]
    world_model = WorldModel(c, spec.num_actions, spec.frame)
    latents = (c.latents, c.classes) if config.agent.agent_state.startswith("latent") else (0, 0)
    agent = Agent(config.agent, features, spec.num_actions, c.bins, latents).to(precision.device)
    precision.prepare(world_model)
    return world_model, agent


def resolve_kernels(wanted: backend.Backend, device: torch.device) -> Literal["reference", "triton"]:
    """The implementation that `--kernels` means on a device.

    Raises:
        InputError: where Triton is needed on a GPU and not installed.
    """
    if device.type == "cpu" or wanted == "reference":
        return "reference"
    if importlib.util.find_spec("triton") is None:
        raise InputError(
            "want Triton for the kernels; it is not installed (pip install triton, or --kernels reference)"
        )
    return "triton"


def weights(world_model: WorldModel, agent: Agent) -> dict[str, Tensor]:
    """All parameters and buffers, as `model.safetensors` names them."""
    modules = {"world_model": world_model, "agent": agent}
    return {f"{prefix}.{name}": t for prefix, module in modules.items() for name, t in module.state_dict().items()}


def load_weights(world_model: WorldModel, agent: Agent, tensors: dict[str, Tensor]) -> None:
    """Copy in what `weights` gave.

    Raises:
        InputError: when names or shapes differ from the configuration's; nothing is copied then.
    """
    own = weights(world_model, agent)
    wrong = sorted(set(own) ^ set(tensors))
    wrong += sorted(name for name in set(own) & set(tensors) if own[name].shape != tensors[name].shape)
    if wrong:
        raise InputError(f"want the weights of this configuration; missing, extra or of another shape: {wrong[:6]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
