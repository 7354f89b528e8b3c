"""Random bits: splitmix64 itself, and keys that tell apart what must differ."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from kd_megatron.data import counter_hash


def test_bits_are_those_of_splitmix64() -> None:
    """The published first outputs of the reference generator for seed 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert counter_hash.random_bits(1234567, np.arange(4)).tolist() == expected


def test_keys_broadcast_against_counters() -> None:
    keys = np.array([5, 6], np.uint64)
    table = counter_hash.random_bits(keys[:, None], np.arange(3)[None, :])
    assert np.array_equal(table[1], counter_hash.random_bits(6, np.arange(3)))


def test_keys_differ_with_every_part_and_with_their_order() -> None:
    parts = [-1, 0, 1, 2, 2**63, 2**64 - 2]
    keys = [counter_hash.key(*p) for num in (1, 2, 3) for p in itertools.product(parts, repeat=num)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("bound", [1, 7, 30_517])
def test_below_stays_below(bound: int) -> None:
    edges = np.array([0, 1, 2**32, 2**64 - 1], np.uint64)
    drawn = counter_hash.below(edges, bound)
    assert drawn.min() == 0
    assert drawn.max() == bound - 1


def test_reading_data_needs_no_slow_library() -> None:
    check = (
        "import sys, kd_megatron.data.loader, kd_megatron.data.index as index; index._helpers();"
        "print([m for m in ('megatron.core', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", check], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
