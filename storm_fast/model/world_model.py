"""The world model: frames to categorical latents and back, and what follows from them (STORM sec. 3.1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from storm_fast.config import ModelConfig
from storm_fast.data.replay import Batch
from storm_fast.kernels import categorical, twohot
from storm_fast.model.decoder import Decoder
from storm_fast.model.encoder import GRID, Encoder
from storm_fast.model.losses import Harmony, weighted_total
from storm_fast.model.mlp import mlp
from storm_fast.model.transformer import Transformer


class Predictions(NamedTuple):
    """Everything that one pass over a batch computes; the losses are made of it."""

    embedding_BTE: Tensor
    post_logits_BTGC: Tensor  # before softmax and unimix, as are the prior's
    z_BTZ: Tensor
    painted_NCYX: Tensor  # the decoder's last activations, of all B * T steps; `image` makes frames of them
    h_BTD: Tensor
    prior_logits_BTGC: Tensor
    reward_logits_BTV: Tensor  # with the margin of the head's weights, if they have one, behind the bins
    end_logit_BT: Tensor


class WorldModel(nn.Module):
    """Encoder, decoder, sequence model and heads. Parameters are float32; autocast decides the products."""

    def __init__(self, config: ModelConfig, num_actions: int, frame: tuple[int, int, int]) -> None:
        """Args: the configuration, the size of the action set, and rows, columns, colours of a frame."""
        super().__init__()
        self.config, self.frame = config, frame
        Z = config.latents * config.classes
        self.encoder = Encoder(frame[2], config.stem_channels, config.conv_activation)
        self.posterior = nn.Linear(8 * config.stem_channels * GRID * GRID, Z)
        self.posterior_norm = nn.BatchNorm1d(Z, affine=False) if config.posterior_norm else None
        self.transformer = Transformer(config, num_actions)
        self.prior = nn.Linear(config.width, Z)
        self.decoder = Decoder(Z, frame[2], config.stem_channels, config.conv_activation)
        features = config.width if config.predictor_input == "hidden" else Z
        self.reward_head = mlp(features, config.width, config.bins, wide_out=True)
        self.end_head = mlp(features, config.width, 1)
        if config.center_frames:
            self.mean_frame: Tensor
            self.register_buffer("mean_frame", torch.zeros(frame))
        self.harmony = Harmony() if config.loss_balance == "harmonised" else None
        self.layout = torch.contiguous_format
        if config.zero_outputs:
            with torch.no_grad():
                for last in (self.decoder.last, self.reward_head[-1]):
                    for parameter in last.parameters():
                        parameter.zero_()

    def forward(
        self, obs_BTYXP: Tensor, action_BT: Tensor, u_BTG: Tensor, u_prior_BTG: Tensor | None = None
    ) -> Predictions:
        """Encode, sample, reconstruct and predict every step of a batch.

        Args:
            obs_BTYXP: uint8 frames.
            action_BT: the action taken on seeing each frame.
            u_BTG: uniform draws for the posterior.
            u_prior_BTG: uniform draws for the prior, needed where `decoder_input` is "prior".
        """
        B, T = action_BT.shape
        embedding_NE = self.encoder(obs_BTYXP.flatten(0, 1), None, self._mean_YXP, self.layout)
        post_logits_BTGC = self._posterior_logits(embedding_NE).unflatten(0, (B, T))
        z_BTZ = categorical.sample(post_logits_BTGC, u_BTG, self.config.unimix).flatten(2)
        h_BTD = self.transformer(z_BTZ, action_BT)
        prior_logits_BTGC = self._prior_logits(h_BTD)
        decoded_BTZ = z_BTZ
        if self.config.decoder_input == "prior":
            if u_prior_BTG is None:
                raise ValueError("want u_prior_BTG where decoder_input is 'prior'; got None")
            guess_BTZ = categorical.sample(prior_logits_BTGC, u_prior_BTG, self.config.unimix).flatten(2)
            # The first step has no past to be predicted from; the loss leaves it out.
            decoded_BTZ = torch.cat([z_BTZ[:, :1], guess_BTZ[:, :-1]], dim=1)
        features_BTF = self.features(z_BTZ, h_BTD)
        return Predictions(
            embedding_NE.unflatten(0, (B, T)),
            post_logits_BTGC,
            z_BTZ,
            self.decoder(decoded_BTZ.flatten(0, 1), self.layout),
            h_BTD,
            prior_logits_BTGC,
            self.reward_head(features_BTF),
            self.end_head(features_BTF).squeeze(-1),
        )

    def loss(self, batch: Batch, predicted: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
        """The world model's loss (STORM eq. 3) and its parts, averaged over batch and time, all 0-d float32."""
        c = self.config
        obs_NYXP = batch.obs_BTYXP.flatten(0, 1)
        squared_N = self.decoder.squared_error(predicted.painted_NCYX, self._mean_YXP, obs_NYXP)
        squared_BT = squared_N.unflatten(0, batch.action_BT.shape)
        if c.decoder_input == "prior":
            squared_BT = squared_BT[:, 1:]
        end_BT = batch.end_BT.float()
        dynamics, representation, kl = categorical.kl_losses(
            predicted.post_logits_BTGC[:, 1:],
            predicted.prior_logits_BTGC[:, :-1],
            c.unimix,
            c.free_nats,
            c.free_nats_per,
        )
        losses = {
            "reconstruction": squared_BT.mean(),
            "reward": twohot.loss(predicted.reward_logits_BTV, batch.reward_BT, c.bins).mean(),
            "end": nn.functional.binary_cross_entropy_with_logits(predicted.end_logit_BT.float(), end_BT),
            "dynamics": dynamics,
            "representation": representation,
        }
        weights = {
            "reconstruction": c.reconstruction_weight,
            "reward": c.reward_weight,
            "end": 1.0,
            "dynamics": c.dynamics_weight,
            "representation": c.representation_weight,
        }
        scales: dict[str, Tensor] = {}
        if self.harmony is not None:
            total, scales = self.harmony(losses, weights)
        else:
            total = weighted_total(losses, weights)
        metrics = losses | {"kl": kl, "total": total} | scales
        return total, {name: value.detach() for name, value in metrics.items()}

    def encode(self, obs_BTYXP: Tensor, u_BTG: Tensor) -> Tensor:
        """Sampled latents z_BTZ of uint8 frames, with the running statistics (evaluation mode, no gradient)."""
        return self.encode_frames(obs_BTYXP.flatten(0, 1), None, u_BTG)

    def encode_frames(self, frames_MYXP: Tensor, index_N: Tensor | None, u_BTG: Tensor) -> Tensor:
        """As `encode`, of the frames at index_N, step after step of each sequence; None takes all in order."""
        embedding_NE = self.encoder.folded(frames_MYXP, index_N, self._mean_YXP, self.layout)
        logits_NGC = self._posterior_logits(embedding_NE)
        z_NGC = categorical.sample(logits_NGC, u_BTG.flatten(0, 1), self.config.unimix)
        z_BTZ: Tensor = z_NGC.flatten(1).unflatten(0, u_BTG.shape[:2])
        return z_BTZ

    def decode(self, z_NZ: Tensor) -> Tensor:
        """Frames image_NPYX on the scale where the observation is [0, 1], unbounded."""
        return self.image(self.decoder(z_NZ, self.layout))

    def image(self, painted_NCYX: Tensor) -> Tensor:
        """Frames image_NPYX of the decoder's last activations."""
        image_NPYX = self.decoder.image(painted_NCYX)
        if self.config.center_frames:
            image_NPYX = image_NPYX + self.mean_frame.permute(2, 0, 1)
        return image_NPYX

    def predict(self, h_ND: Tensor, u_NG: Tensor) -> Tensor:
        """Sample the next latent z_NZ from the prior that follows hidden state h."""
        return categorical.sample(self._prior_logits(h_ND), u_NG, self.config.unimix).flatten(-2)

    def features(self, z_NZ: Tensor, h_ND: Tensor) -> Tensor:
        """The input of the reward and end heads for a step with latent z and hidden state h."""
        return h_ND if self.config.predictor_input == "hidden" else z_NZ

    def reward(self, features_NF: Tensor) -> Tensor:
        """Expected reward, float32 [N]."""
        return twohot.decode(self.reward_head(features_NF), self.config.bins)

    def end_logit(self, features_NF: Tensor) -> Tensor:
        """Logit, float32 [N], that the step ends the episode or loses a life."""
        logit_N: Tensor = self.end_head(features_NF).squeeze(-1).float()
        return logit_N

    def use_channels_last(self) -> None:
        """Keep images and convolution weights in channels_last, the order in which frames arrive."""
        self.layout = torch.channels_last
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub omits the keyword

    def center_on(self, mean_YXP: Tensor) -> None:
        """Set the mean frame, in [0, 1], that `center_frames` subtracts and adds back."""
        self.mean_frame.copy_(mean_YXP)

    @property
    def _mean_YXP(self) -> Tensor | None:
        """What the encoder subtracts from frames."""
        return self.mean_frame if self.config.center_frames else None

    def _posterior_logits(self, embedding_NE: Tensor) -> Tensor:
        logits_NZ = self.posterior(embedding_NE)
        if self.posterior_norm is not None:
            logits_NZ = self.config.posterior_norm * self.posterior_norm(logits_NZ)
        return self._grouped(logits_NZ)

    def _prior_logits(self, h_ND: Tensor) -> Tensor:
        return self._grouped(self.prior(h_ND))

    def _grouped(self, logits_NZ: Tensor) -> Tensor:
        logits_NGC: Tensor = logits_NZ.unflatten(-1, (self.config.latents, self.config.classes))
        return logits_NGC
