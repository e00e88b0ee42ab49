"""A convolution whose bias and ReLU are one pass over its result."""

from storm_fast.kernels.conv_relu.op import conv_relu as conv_relu
