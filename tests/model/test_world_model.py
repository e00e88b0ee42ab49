"""The world model's parts, its loss, and each of its settings in both positions."""

import math

import pytest
import torch
from torch import Tensor

from storm_fast.kernels import categorical, twohot
from storm_fast.model.world_model import Predictions, WorldModel
from tests import networks

G = networks.SMALL.latents


def predict(model: WorldModel, u_prior: bool = False, seed: int = 0) -> Predictions:
    b = networks.batch()
    u_2BTG = networks.uniforms(2, 3, 7, G, seed=seed)
    return model(b.obs_BTYXP, b.action_BT, u_2BTG[0], u_2BTG[1] if u_prior else None)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_folded_encoder_equals_the_normalised_one(
    activation: str, layout: torch.memory_format, centres: bool, gathers: bool
) -> None:
    model = networks.world_model(conv_activation=activation).eval()
    if layout == torch.channels_last:
        model.use_channels_last()
    obs_MYXP = networks.batch().obs_BTYXP.flatten(0, 1)
    index_N = torch.tensor([5, 0, 5, 2]) if gathers else None
    mean_YXP = obs_MYXP.float().mean(0) / 255 if centres else None
    with torch.no_grad():
        got_NE, want_NE = (f(obs_MYXP, index_N, mean_YXP, layout) for f in (model.encoder.folded, model.encoder))
    assert len(got_NE) == (4 if gathers else len(obs_MYXP))
    torch.testing.assert_close(got_NE, want_NE, rtol=1e-4, atol=1e-5)


def test_channels_last_computes_the_same() -> None:
    plain, fast = networks.world_model(), networks.world_model()
    fast.use_channels_last()
    b = networks.batch()
    for got, want in zip(predict(fast), predict(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    losses = [model.loss(b, predict(model))[0] for model in (plain, fast)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_encoding_uses_running_statistics_and_leaves_them() -> None:
    model = networks.world_model().eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    b = networks.batch()
    with torch.no_grad():
        z_BTZ = model.encode(b.obs_BTYXP, networks.uniforms(3, 7, G))
        alone_BTZ = model.encode(b.obs_BTYXP[:1], networks.uniforms(3, 7, G)[:1])
    assert torch.equal(z_BTZ[:1], alone_BTZ)
    assert torch.equal(z_BTZ.unflatten(-1, (G, -1)).sum(-1), torch.ones(3, 7, G))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def frames(model: WorldModel, predicted: Predictions) -> Tensor:
    """What was decoded, image_BTPYX."""
    return model.image(predicted.painted_NCYX).unflatten(0, predicted.end_logit_BT.shape)


def test_the_encoder_learns_through_the_sample() -> None:
    model = networks.world_model()
    predicted = predict(model)
    model.image(predicted.painted_NCYX).square().sum().backward()
    assert model.encoder.convs[0].weight.grad.abs().sum() > 0
    assert model.posterior.weight.grad.abs().sum() > 0


def test_losses_are_the_equations_written_out() -> None:
    model, b = networks.world_model(), networks.batch()
    p = predict(model)
    total, parts = model.loss(b, p)
    target = b.obs_BTYXP.permute(0, 1, 4, 2, 3).double() / 255
    end_BT = b.end_BT.double()
    logit_BT = p.end_logit_BT.double()
    by_hand = {
        "reconstruction": ((frames(model, p).double() - target) ** 2).flatten(2).sum(-1).mean(),
        "reward": twohot.loss(p.reward_logits_BTV, b.reward_BT).mean(),
        "end": -(end_BT * logit_BT.sigmoid().log() + (1 - end_BT) * (-logit_BT).sigmoid().log()).mean(),
        "kl": categorical.kl(p.post_logits_BTGC[:, 1:], p.prior_logits_BTGC[:, :-1], 0.01).mean(),
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(parts[name].double(), value.detach().double(), rtol=1e-5, atol=1e-6)
    rest = 0.5 * parts["dynamics"] + 0.1 * parts["representation"]
    torch.testing.assert_close(total, parts["reconstruction"] + parts["reward"] + parts["end"] + rest)


def test_harmonised_losses_begin_as_they_are_and_learn_three_scales() -> None:
    b = networks.batch()
    plain, harmonised = networks.world_model(), networks.world_model(loss_balance="harmonised")
    assert {name for name, _ in harmonised.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "harmony.log_scale"
    }
    assert plain.harmony is None
    total, _ = plain.loss(b, predict(plain))
    own, parts = harmonised.loss(b, predict(harmonised))
    torch.testing.assert_close(own - total, torch.tensor(3 * math.log(2)), rtol=1e-4, atol=1e-4)
    own.backward()
    kl = 0.5 * parts["dynamics"] + 0.1 * parts["representation"]
    inner = torch.stack([parts["reconstruction"], parts["reward"], kl])
    torch.testing.assert_close(harmonised.harmony.log_scale.grad, 0.5 - inner)  # type: ignore[union-attr]


def test_loss_weights_scale_their_terms() -> None:
    b = networks.batch()
    plain, weighted = networks.world_model(), networks.world_model(reward_weight=10.0, reconstruction_weight=2.0)
    total, parts = plain.loss(b, predict(plain))
    heavier, _ = weighted.loss(b, predict(weighted))
    torch.testing.assert_close(heavier - total, 9 * parts["reward"] + parts["reconstruction"])


def test_free_nats_hold_the_batch_mean_or_every_step() -> None:
    b = networks.batch()
    model = networks.world_model()
    p = predict(model)
    kl_BT = categorical.kl(p.post_logits_BTGC[:, 1:], p.prior_logits_BTGC[:, :-1], 0.01).detach()
    bound = float(kl_BT.median())  # some steps lie above, some below
    for per, want in (("batch", kl_BT.mean().clamp_min(bound)), ("step", kl_BT.clamp_min(bound).mean())):
        model = networks.world_model(free_nats=bound, free_nats_per=per)
        _, parts = model.loss(b, predict(model))
        torch.testing.assert_close(parts["dynamics"], want.detach())
    assert not torch.isclose(kl_BT.mean().clamp_min(bound), kl_BT.clamp_min(bound).mean())


def test_decoder_at_rear_reconstructs_what_the_prior_predicts() -> None:
    model, b = networks.world_model(decoder_input="prior"), networks.batch()
    p = predict(model, u_prior=True)
    guess_BTZ = categorical.sample(p.prior_logits_BTGC, networks.uniforms(2, 3, 7, G)[1], 0.01).flatten(2)
    decoded_BTZ = torch.cat([p.z_BTZ[:, :1], guess_BTZ[:, :-1]], 1)
    torch.testing.assert_close(frames(model, p), model.decode(decoded_BTZ.flatten(0, 1)).unflatten(0, (3, 7)))
    _, parts = model.loss(b, p)
    target = b.obs_BTYXP.permute(0, 1, 4, 2, 3).float() / 255
    want = (frames(model, p) - target)[:, 1:].square().sum((2, 3, 4)).mean()
    torch.testing.assert_close(parts["reconstruction"], want.detach())
    with pytest.raises(ValueError, match="u_prior_BTG"):
        predict(model)


def test_predictor_at_front_reads_the_latent_and_not_the_past() -> None:
    z_NZ, h_ND = torch.rand(4, 24), torch.rand(4, 16)
    rear = networks.world_model().eval()
    front = networks.world_model(predictor_input="latent").eval()
    for model, reads_hidden in ((rear, True), (front, False)):
        same_z = torch.equal(model.reward(model.features(z_NZ, h_ND)), model.reward(model.features(z_NZ, h_ND + 1)))
        same_h = torch.equal(
            model.end_logit(model.features(z_NZ, h_ND)), model.end_logit(model.features(z_NZ + 1, h_ND))
        )
        assert (same_z, same_h) == (not reads_hidden, reads_hidden)
    p = predict(front)
    torch.testing.assert_close(p.reward_logits_BTV, front.reward_head(p.z_BTZ))


def test_posterior_norm_gives_logits_of_that_scale() -> None:
    model = networks.world_model(posterior_norm=3.0)
    logits_NZ = predict(model).post_logits_BTGC.flatten(0, 1).flatten(1)
    torch.testing.assert_close(logits_NZ.mean(0), torch.zeros(24), atol=1e-3, rtol=0)
    # BatchNorm's epsilon pulls down the scale of logits that hardly vary.
    assert logits_NZ.std(0, correction=0).max() <= 3.0
    assert logits_NZ.std(0, correction=0).median() > 1.0
    assert networks.world_model().posterior_norm is None


def test_centring_subtracts_at_the_encoder_and_adds_after_the_decoder() -> None:
    model = networks.world_model(center_frames=True).eval()
    mean_YXP = torch.rand(64, 64, 3)
    z_NZ = torch.rand(2, 24)
    plain_NPYX = model.decode(z_NZ)
    model.center_on(mean_YXP)
    torch.testing.assert_close(model.decode(z_NZ), plain_NPYX + mean_YXP.permute(2, 0, 1))
    seen: list[Tensor] = []
    model.encoder.norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    b = networks.batch()
    model(b.obs_BTYXP, b.action_BT, networks.uniforms(3, 7, G))
    image_NPYX = (b.obs_BTYXP.flatten(0, 1).float() / 255 - mean_YXP).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0], model.encoder.convs[0](image_NPYX))


def test_bf16_errs_little_from_float32() -> None:
    b = networks.batch()
    model = networks.world_model()
    model.use_channels_last()
    want = model.loss(b, predict(model))[1]
    with torch.autocast("cpu", torch.bfloat16):
        got = model.loss(b, predict(model))[1]
    for name in ("reconstruction", "reward", "end"):
        # bf16 has 8 bits of mantissa; errors of a few products in a row stay within a few of its steps.
        torch.testing.assert_close(got[name], want[name], rtol=0.03, atol=0.02)
        assert got[name].dtype == torch.float32


def test_zero_outputs_start_the_decoder_and_the_reward_head_at_zero_and_leave_the_rest() -> None:
    frame_N = torch.randint(0, 256, (1, 3, 64, 64, 3), dtype=torch.uint8)
    action_N = torch.zeros(1, 3, dtype=torch.int64)
    zero, other = networks.world_model(zero_outputs=True), networks.world_model()
    u_BTG = torch.rand(1, 3, G)
    predicted = zero(frame_N, action_N, u_BTG)
    assert not zero.image(predicted.painted_NCYX).any()
    assert not predicted.reward_logits_BTV.any()
    assert predicted.prior_logits_BTGC.any()
    assert other.image(other(frame_N, action_N, u_BTG).painted_NCYX).any()
    assert other(frame_N, action_N, u_BTG).reward_logits_BTV.any()
