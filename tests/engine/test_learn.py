"""Updates: optimiser, clipping, metrics, and the shape of their batches."""

import pytest
import torch

from storm_fast.data.replay import Replay
from storm_fast.engine import learn
from storm_fast.engine.metrics import MeanMetrics
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import Precision, choose
from storm_fast.errors import InputError
from tests import networks

CPU = torch.device("cpu")


def test_world_model_learns_a_batch_by_heart() -> None:
    model = networks.world_model()
    optimizer = Optimizer(model, 3e-3, eps=1e-8, clip=1000.0)
    g = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(30):
        metrics, context = learn.update_world_model(model, optimizer, networks.batch(), g, choose("cpu", "fp32"))
        losses.append(float(metrics["reward"]))
    assert losses[-1] < 0.7 * losses[0]
    assert context.z_BCZ.shape == (3, 7, 24)
    assert not context.z_BCZ.requires_grad


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_two_optimiser_steps_equal_torch_adam_after_clipping(clip: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(ours, 0.01, eps=1e-5, clip=clip)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01, eps=1e-5, foreach=False)
    x = torch.randn(3, 4)
    for _ in range(2):
        optimizer.backward(ours(x).square().sum())
        norm = optimizer.step()
        adam.zero_grad()
        theirs(x).square().sum().backward()
        square = sum(float(p.grad.square().sum()) for p in theirs.parameters())
        assert float(norm) == pytest.approx(square**0.5, rel=1e-5)
        for p in theirs.parameters():
            p.grad.mul_(min(1.0, clip / square**0.5))
        adam.step()
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):  # a step hardly depends on the scale
        torch.testing.assert_close(optimizer.adam.state[got]["exp_avg"], adam.state[want]["exp_avg"])
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-6)


def test_demonstration_windows_come_beside_those_of_the_replay() -> None:
    replay, demonstration = (Replay(20, 1, (64, 64, 3), CPU) for _ in range(2))
    for reward, store in ((0.0, replay), (1.0, demonstration)):
        for _ in range(20):
            zero = torch.zeros(1, dtype=torch.int64)
            store.append(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), zero, torch.tensor([reward]), zero.bool())
    g = torch.Generator().manual_seed(0)
    batch = learn.sample(replay, demonstration, 3, 2, 5, g)
    assert batch.reward_BT[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert learn.sample(replay, None, 3, 2, 5, g).reward_BT.shape == (3, 5)


@pytest.mark.parametrize("B_demonstration", [0, 2])
def test_contexts_gathered_from_the_replay_are_those_of_a_batch(B_demonstration: int) -> None:
    model, precision = networks.world_model(), Precision(CPU, torch.float32)
    stores = [Replay(20, 1, (64, 64, 3), CPU) for _ in range(2)]
    g = torch.Generator().manual_seed(0)
    for store in stores:
        for _ in range(30):  # the ring has gone round
            obs_1YXP = torch.randint(256, (1, 64, 64, 3), generator=g, dtype=torch.uint8)
            action_1 = torch.randint(networks.ACTIONS, (1,), generator=g)
            store.append(obs_1YXP, action_1, torch.zeros(1), torch.zeros(1))
    drawn = [torch.Generator().manual_seed(1) for _ in range(2)]
    batch = learn.sample(*stores, 3, B_demonstration, 4, drawn[0])
    want = learn.encode_context(model, batch, drawn[0], precision)
    got = learn.draw_context(model, *stores, 3, B_demonstration, 4, drawn[1], precision)
    assert torch.equal(got.z_BCZ, want.z_BCZ)
    assert torch.equal(got.action_BC, want.action_BC)
    assert torch.equal(drawn[0].get_state(), drawn[1].get_state())


def test_means_are_over_the_updates_since_the_last_row() -> None:
    means = MeanMetrics(CPU)
    for value in (1.0, 3.0):
        means.add("model", {"x": torch.tensor(value)})
    again = MeanMetrics(CPU)
    again.load_state_dict(means.state_dict())
    assert means.pop() == again.pop() == {"model/x": 2.0}
    assert means.pop() == {}


def test_means_go_by_name_whatever_the_order_of_a_call() -> None:
    """A run resumed by a version that computes its metrics in another order keeps their sums apart."""
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    means = MeanMetrics(CPU)
    means.add("model", {"x": one, "y": two})
    means.add("model", {"y": two, "x": one})
    assert means.pop() == {"model/x": 1.0, "model/y": 2.0}
    with pytest.raises(AssertionError, match="want \\['x', 'y'\\]"):
        means.add("model", {"x": one})


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="cpu, cuda"):
        choose("quantum", "auto")
    with pytest.raises(InputError, match="cpu, cuda"):
        choose("meta", "auto")
    with pytest.raises(InputError, match="sees"):
        choose("cuda:99", "auto")
    assert choose("cpu", "fp32").dtype == torch.float32
    assert choose("cpu", "bf16").dtype == torch.bfloat16


def test_what_a_state_says_of_capture_is_not_taken_over() -> None:
    module = torch.nn.Linear(2, 2)
    saved = Optimizer(module, 1e-3, 1e-8, 1.0)
    saved.backward(module(torch.ones(2)).sum())
    saved.step()
    state = saved.state_dict()
    state["param_groups"][0]["capturable"] = True  # as a GPU saves it
    loaded = Optimizer(module, 1e-3, 1e-8, 1.0)
    loaded.load_state_dict(state)
    assert loaded.adam.param_groups[0]["capturable"] is False
