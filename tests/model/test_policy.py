"""Acting: which steps the policy sees, with either latent, and what an episode's end does."""

from dataclasses import replace

import torch

from storm_fast.config import LoopConfig
from storm_fast.kernels import categorical
from storm_fast.model.policy import Policy
from tests import networks

CPU = torch.device("cpu")
G = networks.SMALL.latents


def policy(N: int, **changes: object) -> Policy:
    config = replace(LoopConfig(acting_context=4), **changes)  # type: ignore[arg-type]
    return Policy(networks.world_model().eval(), networks.agent(), config, N, CPU)


def frames(n: int, N: int) -> torch.Tensor:
    return torch.randint(256, (n, N, 64, 64, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def by_hand(p: Policy, obs: list[torch.Tensor], actions: list[int], newest: torch.Tensor | None) -> torch.Tensor:
    """The action of one environment from plain lists, with the draws `act` makes for it alone."""
    u_1K = torch.rand(1, 5 * G + 1, generator=torch.Generator().manual_seed(7))
    u_1SG = u_1K[:, :-1].unflatten(1, (5, G))
    k = len(actions)
    z_1TZ = p.world_model.encode(torch.stack(obs)[None], u_1SG[:, :k])
    h_1D = p.world_model.transformer(z_1TZ, torch.tensor([actions]))[:, -1]
    if newest is None:
        z_1Z = p.world_model.predict(h_1D, u_1SG[:, 4])
    else:
        z_1Z = p.world_model.encode(newest[None, None], u_1SG[:, 4:])[:, 0]
    return categorical.draw(p.agent.actor(torch.cat([z_1Z, h_1D], -1)), u_1K[:, -1])


def test_policy_sees_its_last_steps_and_the_newest_frame_only_with_posterior() -> None:
    for latent in ("prior", "posterior"):
        p = policy(1, acting_latent=latent)
        seen = frames(8, 1)
        obs: list[torch.Tensor] = []
        actions: list[int] = []
        for t in range(7):
            if actions:
                newest = seen[t, 0] if latent == "posterior" else None
                with torch.no_grad():
                    want = by_hand(p, obs[-4:], actions[-4:], newest)
                assert torch.equal(p.act(seen[t], torch.Generator().manual_seed(7)), want), (latent, t)
            obs.append(seen[t, 0])
            actions.append(t % networks.ACTIONS)
            p.remember(seen[t], torch.tensor([actions[-1]]))


def test_empty_context_gives_uniform_actions() -> None:
    p = policy(400)
    actions = p.act(frames(1, 400)[0], torch.Generator().manual_seed(0))
    counts = torch.bincount(actions, minlength=networks.ACTIONS)
    assert (counts > 40).all()  # 80 expected of each, standard deviation 8


def test_the_first_action_is_zero_where_asked() -> None:
    p = policy(400, acting_first="zero", acting_uniform=1.0)
    assert (p.act(frames(1, 400)[0], torch.Generator().manual_seed(0)) == 0).all()


def test_a_share_of_actions_is_uniform_whatever_the_policy_wants() -> None:
    N = 4000
    drawn = {}
    for share in (0.0, 0.25):
        p = policy(N, acting_uniform=share)
        with torch.no_grad():
            p.agent.actor[-1].bias[1] = 50.0  # it wants nothing else
        p.remember(frames(1, N)[0], torch.zeros(N, dtype=torch.int64))
        drawn[share] = p.act(frames(2, N)[1], torch.Generator().manual_seed(0))
    assert (drawn[0.0] == 1).all()
    others = (drawn[0.25] != 1).float().mean().item()
    wanted = 0.25 * (1 - 1 / networks.ACTIONS)
    assert abs(others - wanted) < 6 * (wanted * (1 - wanted) / N) ** 0.5
    assert len(drawn[0.25].unique()) == networks.ACTIONS


def test_episode_end_clears_the_context_only_where_asked() -> None:
    for at_end, want in (("keep", [3, 3]), ("clear", [0, 3])):
        p = policy(2, acting_at_end=at_end)
        for t in range(3):
            p.remember(frames(3, 2)[t], torch.tensor([0, 1]))
        p.end_episodes(torch.tensor([True, False]))
        assert p.length_N.tolist() == want


def test_context_survives_saving() -> None:
    p, q = policy(2), policy(2)
    for t in range(6):
        p.remember(frames(6, 2)[t], torch.tensor([t % 3, 1]))
    q.load_state_dict({name: value.clone() for name, value in p.state_dict().items()})
    g = torch.Generator()
    assert torch.equal(p.act(frames(1, 2)[0], g.manual_seed(1)), q.act(frames(1, 2)[0], g.manual_seed(1)))
