"""The encoder's first convolution, of uint8 frames: gathered, scaled, centred, convolved, rectified."""

from storm_fast.kernels.first_conv.op import first_conv as first_conv
