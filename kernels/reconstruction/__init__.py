"""The reconstruction error of decoded images, straight from the replay's uint8 frames."""

from storm_fast.kernels.reconstruction.op import squared_error as squared_error
