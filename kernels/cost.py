"""The unavoidable work of one call: what a roofline is drawn from."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Work that every implementation has to do."""

    flops: int  # a multiply-add is two, an exponential or a logarithm one
    bytes: int  # to and from device memory: each input read once, each output written once
