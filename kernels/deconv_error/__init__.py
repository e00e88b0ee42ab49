"""The decoder's last layer and the reconstruction error behind it."""

from storm_fast.kernels.deconv_error.op import squared_error as squared_error
