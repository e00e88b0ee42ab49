"""Rollouts: what is kept of them, and each of the agent's states."""

import pytest
import torch

from storm_fast.engine import learn
from storm_fast.engine.precision import choose
from storm_fast.kernels import categorical
from storm_fast.model.imagine import Context, agent_state, draw_uniforms, outcomes, outcomes_by_steps, rollout
from tests import networks

G, Z, D = networks.SMALL.latents, 24, networks.SMALL.width


def context(B: int = 6, C: int = 3) -> Context:
    g = torch.Generator().manual_seed(1)
    class_BCG = torch.randint(6, (B, C, G), generator=g)
    z_BCZ = torch.nn.functional.one_hot(class_BCG, 6).flatten(2).float()
    return Context(z_BCZ, torch.randint(networks.ACTIONS, (B, C), generator=g))


def test_trajectory_equals_full_passes_without_a_cache() -> None:
    model, agent = networks.world_model().eval(), networks.agent().eval()
    start, T = context(), 5
    u = draw_uniforms(6, T, G, torch.Generator().manual_seed(0), torch.device("cpu"))
    got = rollout(model, agent, start, u)
    with torch.no_grad():
        z_BTZ, action_BT = start
        h_BD = model.transformer(z_BTZ, action_BT)[:, -1]
        z_BZ = model.predict(h_BD, u.start_BG)
        for t in range(T):
            state_BF = torch.cat([z_BZ, h_BD], -1)
            torch.testing.assert_close(got.state_BSF[:, t], state_BF, rtol=1e-4, atol=1e-5)
            action_B = categorical.draw(agent.actor(state_BF), u.action_TB[t])
            assert torch.equal(got.action_BT[:, t], action_B)
            z_BTZ, action_BT = torch.cat([z_BTZ, z_BZ[:, None]], 1), torch.cat([action_BT, action_B[:, None]], 1)
            h_BD = model.transformer(z_BTZ, action_BT)[:, -1]
            torch.testing.assert_close(
                got.reward_BT[:, t], model.reward(model.features(z_BZ, h_BD)), rtol=1e-3, atol=1e-5
            )
            assert torch.equal(got.end_BT[:, t], (model.end_logit(model.features(z_BZ, h_BD)) > 0).float())
            z_BZ = model.predict(h_BD, u.prior_TBG[t])
    assert got.state_BSF.shape == (6, T + 1, Z + D)


def test_draws_of_each_step_are_dense_and_those_of_one_call_of_the_generator() -> None:
    B, T = 3, 5
    u = draw_uniforms(B, T, G, torch.Generator().manual_seed(0), torch.device("cpu"))
    u_BN = torch.rand(B, G + T + T * G, generator=torch.Generator().manual_seed(0))
    assert torch.equal(u.start_BG, u_BN[:, :G])
    for t in range(T):
        assert torch.equal(u.action_TB[t], u_BN[:, G + t])
        assert torch.equal(u.prior_TBG[t], u_BN[:, G + T + t * G :][:, :G])
        assert u.action_TB[t].is_contiguous()
        assert u.prior_TBG[t].is_contiguous()
    assert u.start_BG.is_contiguous()


def test_imagined_end_is_hard_or_a_probability() -> None:
    logit_N = torch.tensor([-2.0, 0.0, 3.0])
    assert networks.agent().end(logit_N).tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(networks.agent(imagined_end="weighted").end(logit_N), logit_N.sigmoid())


@pytest.mark.parametrize(
    ("kind", "features"),
    [("latent+hidden", Z + D), ("latent", Z), ("hidden", D), ("reconstruction", 64 * 64 * 3)],
)
def test_agent_state_is_what_the_configuration_names(kind: str, features: int) -> None:
    model, agent = networks.world_model().eval(), networks.agent(features=features, agent_state=kind)
    z_NZ, h_ND = torch.rand(2, Z), torch.rand(2, D)
    got_NF = agent_state(model, agent, z_NZ, h_ND)
    want = {
        "latent+hidden": torch.cat([z_NZ, h_ND], -1),
        "latent": z_NZ,
        "hidden": h_ND,
        "reconstruction": model.decode(z_NZ).flatten(1),
    }
    assert torch.equal(got_NF, want[kind])
    u = draw_uniforms(6, 2, G, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert rollout(model, agent, context(), u).state_BSF.shape == (6, 3, features)


def test_no_gradient_flows_from_imagination() -> None:
    model, agent = networks.world_model().eval(), networks.agent()
    u = draw_uniforms(6, 2, G, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert not any(field.requires_grad for field in rollout(model, agent, context(), u))


def test_context_cut_from_a_batch_is_a_window_of_it() -> None:
    whole = Context(torch.arange(4 * 9.0).reshape(4, 9, 1), torch.arange(36).reshape(4, 9))
    cut = learn.cut_context(whole, 500, 3, torch.Generator().manual_seed(0))
    assert torch.equal(cut.z_BCZ[..., 0].long(), cut.action_BC)
    assert torch.equal(cut.action_BC - cut.action_BC[:, :1], torch.arange(3).expand(500, 3))
    assert set(cut.action_BC[:, 0].tolist()) == {9 * row + start for row in range(4) for start in range(7)}


def test_encoded_context_is_in_evaluation_mode() -> None:
    model = networks.world_model().train()
    before = model.encoder.norms[0].running_mean.clone()
    precision = choose("cpu", "fp32")
    got = learn.encode_context(model, networks.batch(), torch.Generator().manual_seed(0), precision)
    u_BCG = torch.rand(3, 7, G, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(got.z_BCZ, model.encode(networks.batch().obs_BTYXP, u_BCG))
    assert torch.equal(model.encoder.norms[0].running_mean, before)


def test_outcomes_of_all_steps_at_once_are_those_of_each() -> None:
    model, agent = networks.world_model().eval(), networks.agent().eval()
    g = torch.Generator().manual_seed(2)
    features = [torch.randn(6, D if networks.SMALL.predictor_input == "hidden" else Z, generator=g) for _ in range(5)]
    with torch.no_grad():
        got, want = (of(model, agent, features) for of in (outcomes, outcomes_by_steps))
    assert got[0].shape == got[1].shape == (6, 5)
    torch.testing.assert_close(got, want)
