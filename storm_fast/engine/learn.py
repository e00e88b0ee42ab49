"""One update of the world model, one of the agent, and where imagination starts; each a function of its inputs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from storm_fast.config import ImagineConfig
from storm_fast.data.replay import Batch, Replay, Windows, concat
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import Precision
from storm_fast.model.agent import Agent, Trajectory, of_actions
from storm_fast.model.imagine import Context, draw_uniforms, rollout
from storm_fast.model.world_model import WorldModel

Metrics = dict[str, Tensor]


def sample(
    replay: Replay,
    demonstration: Replay | None,
    B: int,
    B_demonstration: int,
    T: int,
    generator: torch.Generator,
) -> Batch:
    """B windows of T steps from the replay and, where there is a demonstration, further ones from it."""
    batches = [replay.sample(B, T, generator)]
    if demonstration is not None and B_demonstration > 0:
        batches.append(demonstration.sample(B_demonstration, T, generator))
    return concat(batches)


def update_world_model(
    world_model: WorldModel,
    optimizer: Optimizer,
    batch: Batch,
    generator: torch.Generator,
    precision: Precision,
) -> tuple[Metrics, Context]:
    """One optimiser step on a batch (STORM eq. 3).

    Returns:
        The losses as 0-d tensors, and the batch's sampled latents and actions.
    """
    world_model.train()
    c = world_model.config
    u_2BTG = torch.rand(2, *batch.action_BT.shape, c.latents, generator=generator, device=precision.device)
    with optimizer.standing(), precision.autocast():
        predicted = world_model(batch.obs_BTYXP, batch.action_BT, u_2BTG[0], u_2BTG[1])
        loss, metrics = world_model.loss(batch, predicted)
    optimizer.backward(loss)
    metrics["gradient_norm"] = optimizer.step()
    optimizer.refresh()
    return metrics, Context(predicted.z_BTZ.detach(), batch.action_BT)


@torch.no_grad()
def draw_context(
    world_model: WorldModel,
    replay: Replay,
    demonstration: Replay | None,
    B: int,
    B_demonstration: int,
    C: int,
    generator: torch.Generator,
    precision: Precision,
) -> Context:
    """`encode_context` of what `sample` would draw; the encoder reads a lone replay's frames where they lie."""
    drawn = [replay.windows(B, C, generator)]
    if demonstration is not None and B_demonstration > 0:
        drawn.append(demonstration.windows(B_demonstration, C, generator))
    windows = _joined(drawn)
    world_model.eval()
    G = world_model.config.latents
    u_BCG = torch.rand(*windows.action_BT.shape, G, generator=generator, device=precision.device)
    with precision.autocast():
        z_BCZ = world_model.encode_frames(windows.frames_MYXP, windows.index_N, u_BCG)
        return Context(z_BCZ, windows.action_BT)


def _joined(drawn: list[Windows]) -> Windows:
    """All windows as those of one replay, without a copy where there is one."""
    if len(drawn) == 1:
        return drawn[0]
    # The frames as bytes: what the encoder makes of them is larger.
    frames_NYXP = torch.cat([windows.frames_MYXP.index_select(0, windows.index_N) for windows in drawn])
    index_N = torch.arange(len(frames_NYXP), device=frames_NYXP.device)
    return Windows(frames_NYXP, index_N, torch.cat([windows.action_BT for windows in drawn]))


@torch.no_grad()
def encode_context(world_model: WorldModel, batch: Batch, generator: torch.Generator, precision: Precision) -> Context:
    """Latents of real steps, sampled from the posterior with the running statistics."""
    world_model.eval()
    G = world_model.config.latents
    u_BCG = torch.rand(*batch.action_BT.shape, G, generator=generator, device=precision.device)
    with precision.autocast():
        return Context(world_model.encode(batch.obs_BTYXP, u_BCG), batch.action_BT)


def cut_context(whole: Context, B: int, C: int, generator: torch.Generator) -> Context:
    """B windows of C steps, uniform over the sequences and starts of `whole`."""
    N, T = whole.action_BC.shape
    device = whole.action_BC.device
    row_B = torch.randint(N, (B,), generator=generator, device=device)
    start_B = torch.randint(T - C + 1, (B,), generator=generator, device=device)
    index_BC = start_B[:, None] + torch.arange(C, device=device)
    return Context(whole.z_BCZ[row_B[:, None], index_BC], whole.action_BC[row_B[:, None], index_BC])


def imagine(
    world_model: WorldModel,
    agent: Agent,
    context: Context,
    config: ImagineConfig,
    generator: torch.Generator,
    precision: Precision,
) -> Trajectory:
    """Roll the policy out in the world model from each context."""
    world_model.eval()
    B, G = context.action_BC.shape[0], world_model.config.latents
    u = draw_uniforms(B, config.horizon, G, generator, precision.device)
    with precision.autocast():
        return rollout(world_model, agent, context, u)


def update_agent(agent: Agent, optimizer: Optimizer, trajectory: Trajectory, precision: Precision) -> Iterator[Metrics]:
    """The agent's updates on a rollout, `agent_updates` of them, each on an equal share of its trajectories.

    Each is an optimiser step of actor and critic (STORM eqs. 7a, 7b) and then one of the slow critic (eq. 10).
    """
    updates = agent.config.agent_updates
    shares = [Trajectory(*share) for share in zip(*(x.tensor_split(updates) for x in trajectory), strict=True)]
    thens: list[Tensor | None] = [None] * updates
    if agent.config.policy_loss == "ratio":
        # Before the first update the policy is still the one that imagined.
        with torch.no_grad(), optimizer.standing(), precision.autocast():
            then_BT = of_actions(agent.log_policy(trajectory), trajectory.action_BT)
        thens = list(then_BT.tensor_split(updates))
    for share, then in zip(shares, thens, strict=True):
        with optimizer.standing(), precision.autocast():
            loss, metrics = agent.loss(share, then)
        optimizer.backward(loss)
        metrics["gradient_norm"] = optimizer.step()
        agent.update_slow_critic()
        optimizer.refresh()
        yield metrics
