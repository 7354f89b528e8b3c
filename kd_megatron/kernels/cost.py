"""What one launch of a Triton kernel moves and computes, from the shapes alone: for models of a step's time.

Beside every launch stands a pure function that returns a `LaunchCost`. Counted is what the launch must do in the ideal:
inputs that neighbouring programs share are read from memory once, as caches serve the rest.
"""

from typing import NamedTuple


class LaunchCost(NamedTuple):
    """Of one launch."""

    bytes_read: float
    bytes_written: float
    flops: float  # of matrix products and of element-wise work; an exponential counts as one
