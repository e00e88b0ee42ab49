"""Batch normalisation in training with the activation behind it."""

from storm_fast.kernels.batch_norm.op import batch_norm as batch_norm
