"""Counter-based random bits: the value at a place is a pure function of the place, with no generator state.

This is what makes an order or a mask the same for any micro-batch, accumulation or world size, and what lets a
resumed run start at any sample at no cost. The mixing function is splitmix64 (Steele, Lea and Flood, *Fast splittable
pseudorandom number generators*, OOPSLA 2014), vectorised over uint64 arrays, which wrap modulo 2^64 on purpose.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]

_MODULUS = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, splitmix64's increment
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(state: Bits) -> Bits:
    """splitmix64's finaliser, a bijection of 64-bit words, elementwise. ``state`` is overwritten and returned."""
    state ^= state >> _SHIFTS[0]
    state *= _MULTIPLIERS[0]
    state ^= state >> _SHIFTS[1]
    state *= _MULTIPLIERS[1]
    state ^= state >> _SHIFTS[2]
    return state


def key(*parts: int) -> int:
    """One 64-bit key from a seed and whatever tells its uses apart (purpose, source, epoch), in order."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state += np.uint64((part + _GOLDEN) % _MODULUS)
        mix(state)
    return int(state[0])


def random_bits(keys: Bits | np.uint64 | int, counters: NDArray[Any]) -> Bits:
    """64 random bits for each counter under its key; ``keys`` broadcasts against ``counters`` (integers >= 0)."""
    # Odd multiples of the counter keep all 64 bits apart before the mix, as the increments of splitmix64 do.
    state: Bits = (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return mix(state + np.asarray(keys, np.uint64))


def below(bits: Bits, bound: int) -> NDArray[np.int64]:
    """Random integers in [0, bound) from 64 random bits; ``bound`` < 2^32, so the bias is below 2^-32."""
    return ((bits >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)
