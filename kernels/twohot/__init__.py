"""Symlog two-hot regression: encode, loss, decode."""

from storm_fast.kernels.twohot.op import decode as decode
from storm_fast.kernels.twohot.op import encode as encode
from storm_fast.kernels.twohot.op import loss as loss
from storm_fast.kernels.twohot.reference import symexp as symexp
from storm_fast.kernels.twohot.reference import symlog as symlog
