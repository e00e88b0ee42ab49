"""Does the world model know what earns reward? A probe to read beside the return, which can mislead.

On a rollout it was not trained on, the model imagines 16 steps from each place under the actions really taken; the
probe is the area under the ROC curve of the imagined reward against whether reward really came. 0.5 is chance. A
reward head that only counts actions scores near it on a policy that nearly always takes the same one.
"""

import numpy as np
import numpy.typing as npt
import torch

from storm_fast.data.demonstration import Arrays
from storm_fast.data.replay import Batch
from storm_fast.engine import learn
from storm_fast.engine.precision import Precision
from storm_fast.model.imagine import Context, draw_uniforms
from storm_fast.model.past import Cached
from storm_fast.model.world_model import WorldModel


def auc(score_N: npt.NDArray[np.float64], positive_N: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half.

    NaN where one of the two kinds is missing.
    """
    positives, negatives = score_N[positive_N], score_N[~positive_N]
    if not len(positives) or not len(negatives):
        return float("nan")
    order_N = np.sort(negatives)
    below = np.searchsorted(order_N, positives, "left")
    not_above = np.searchsorted(order_N, positives, "right")
    return float((below + not_above).mean() / 2 / len(negatives))


@torch.no_grad()
def imagined_reward(
    world_model: WorldModel,
    windows: Batch,
    C: int,
    generator: torch.Generator,
    precision: Precision,
) -> npt.NDArray[np.float64]:
    """The reward that the model expects over the steps after each window's first C, under the window's own actions.

    Args:
        world_model: in any mode; evaluation mode afterwards.
        windows: of C + T steps.
        C: steps that are shown; the other T are imagined.
        generator: for the latents.
        precision: device and dtype.

    Returns:
        Sums over T steps, [B].
    """
    B, S = windows.action_BT.shape
    shown = Batch(*(field[:, :C] for field in windows))
    context = learn.encode_context(world_model, shown, generator, precision)
    u = draw_uniforms(B, S - C, world_model.config.latents, generator, precision.device)
    with precision.autocast():
        return _replayed(world_model, context, windows.action_BT[:, C:], u.start_BG, u.prior_TBG).cpu().numpy()


def _replayed(
    world_model: WorldModel,
    context: Context,
    action_BT: torch.Tensor,
    u_start_BG: torch.Tensor,
    u_prior_TBG: torch.Tensor,
) -> torch.Tensor:
    """Imagine under given actions; the sum of rewards, float64 [B]."""
    B, C = context.action_BC.shape
    past = Cached(world_model.transformer, B, C + action_BT.shape[1])
    h_BD = past.read(context.z_BCZ, context.action_BC)[:, -1]
    z_BZ = world_model.predict(h_BD, u_start_BG)
    total_B = torch.zeros(B, dtype=torch.float64, device=action_BT.device)
    for t, action_B in enumerate(action_BT.unbind(1)):
        h_BD = past.step(z_BZ, action_B)
        total_B += world_model.reward(world_model.features(z_BZ, h_BD))
        z_BZ = world_model.predict(h_BD, u_prior_TBG[t])
    return total_B


def reward_probe(
    world_model: WorldModel,
    rollout: Arrays,
    C: int,
    T: int,
    generator: torch.Generator,
    precision: Precision,
    batch: int = 256,
) -> float:
    """The probe on every window of C + T steps of a rollout in the demonstration's format."""
    n = len(rollout["action"])
    starts = np.arange(max(n - C - T + 1, 0))
    scores, positive = [], []
    for chunk in np.array_split(starts, max(1, len(starts) // batch)):
        index = chunk[:, None] + np.arange(C + T)
        end = (rollout["terminated"] | rollout["life_loss"])[index]
        arrays = (
            rollout["obs"][index],
            rollout["action"][index].astype(np.int64),
            rollout["reward"][index],
            end,
        )
        windows = Batch(*(torch.from_numpy(array).to(precision.device) for array in arrays))
        scores.append(imagined_reward(world_model, windows, C, generator, precision))
        positive.append((rollout["reward"][index][:, C:] > 0).any(1))
    return auc(np.concatenate(scores), np.concatenate(positive))
