"""Causal multi-head attention, and its steps on a cache of projected keys and values."""

from storm_fast.kernels.attention.op import attend as attend
from storm_fast.kernels.attention.op import dropout_mask as dropout_mask
from storm_fast.kernels.attention.op import prefill as prefill
from storm_fast.kernels.attention.op import step as step
