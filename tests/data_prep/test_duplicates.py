"""Repeated documents, found part by part: the same ones as by a set of all digests."""

import random
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from data_prep import duplicates
from data_prep.assign import document_digest


@pytest.mark.parametrize("at_a_time", [50, 120, 1 << 20])
@pytest.mark.parametrize("num_documents", [0, 1, 500])
def test_all_but_the_first_of_equal_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int, num_documents: int
) -> None:
    rng = random.Random(at_a_time)
    digests = [document_digest(f"text {rng.randrange(200)}") for _ in range(num_documents)]
    (tmp_path / "x.digests").write_bytes(b"".join(digests))
    monkeypatch.setattr(duplicates, "AT_A_TIME", at_a_time)
    expected = [digest in digests[:place] for place, digest in enumerate(digests)]
    assert duplicates.repeated(tmp_path / "x.digests").tolist() == expected
    assert num_documents < 500 or sum(expected) > 200


PEAK = """
import sys, tracemalloc
from pathlib import Path
from data_prep import duplicates
duplicates.AT_A_TIME = 1 << 12
duplicates.repeated(Path(sys.argv[1]))  # numpy's own first allocations
tracemalloc.start()
duplicates.repeated(Path(sys.argv[1]))
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_grows_by_a_byte_a_document(tmp_path: Path) -> None:
    """In a process of its own: what threads of other tests allocate would be counted too."""
    peaks = {}
    for num_documents in (1 << 14, 1 << 17):
        (tmp_path / "x.digests").write_bytes(random.Random(0).randbytes(16 * num_documents))
        command = [sys.executable, "-c", PEAK, str(tmp_path / "x.digests")]
        done = subprocess.run(command, env=processes.environment(), capture_output=True, text=True, check=True)
        peaks[num_documents] = int(done.stdout)
    assert peaks[1 << 17] - peaks[1 << 14] < 1.5 * ((1 << 17) - (1 << 14))  # a set of all digests: more than 80 each


def test_digests_that_agree_in_one_half_are_different(tmp_path: Path) -> None:
    digests = [first * 8 + second * 8 for first in (b"a", b"b") for second in (b"c", b"d")]
    (tmp_path / "x.digests").write_bytes(b"".join([*digests, digests[2]]))
    assert duplicates.repeated(tmp_path / "x.digests").tolist() == [False] * 4 + [True]
