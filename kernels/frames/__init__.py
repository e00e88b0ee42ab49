"""uint8 frames of the replay as the encoder wants them: gathered, scaled, centred, laid out."""

from storm_fast.kernels.frames.op import gather as gather
from storm_fast.kernels.frames.op import normalise as normalise
