"""Categorical latents: unimix, inverse-CDF draw, straight-through gradient, KL with free nats."""

from storm_fast.kernels.categorical.op import draw as draw
from storm_fast.kernels.categorical.op import kl_losses as kl_losses
from storm_fast.kernels.categorical.op import sample as sample
from storm_fast.kernels.categorical.reference import kl as kl
from storm_fast.kernels.categorical.reference import probabilities as probabilities
