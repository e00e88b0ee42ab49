"""Causal multi-head attention, and its steps on a cache of projected keys and values."""

from storm_fast.kernels.attention.reference import attend as attend
from storm_fast.kernels.attention.reference import prefill as prefill
from storm_fast.kernels.attention.reference import step as step
