"""A ratio beside a recorded one: what counts as the same row, what as slower, and which direction is worse."""

from dataclasses import replace

import pytest

from benchmarks.comparison import compare, refuse_slower
from benchmarks.rows import Row
from kd_megatron.errors import DataError, SlowerError

SCRATCH = Row("step/scratch", "auto", "B64 L128 (4x16)", "bf16", "cpu", 1.0, 2.0, 3.0, None, 1000.0, 1.0, "scratch")
MINILM = replace(SCRATCH, name="step/minilm", ratio=0.8)
PEER = replace(SCRATCH, name="peer/huggingface_trainer", backend="transformers 4.57.6", ratio=0.5)


def slower_by(now: Row, recorded: Row) -> float:
    (change,) = compare([now], [recorded])
    return change.slower_by


@pytest.mark.parametrize("ratio", [0.8, 0.73, 0.9, 5.0])
def test_within_the_tolerance_or_faster_passes(ratio: float):
    refuse_slower(compare([SCRATCH, replace(MINILM, ratio=ratio)], [SCRATCH, MINILM]), tolerance=0.1)


def test_a_fall_beyond_the_tolerance_names_the_row_and_both_ratios():
    changes = compare([SCRATCH, replace(MINILM, ratio=0.64)], [SCRATCH, MINILM])
    with pytest.raises(SlowerError, match=r"step/minilm auto B64 .*0\.8 was recorded, now 0\.64") as caught:
        refuse_slower(changes, tolerance=0.1)
    assert "step/scratch" not in str(caught.value)
    assert "10%" in caught.value.expected
    assert changes[1].slower_by == pytest.approx(0.2)
    refuse_slower(changes, tolerance=0.21)


def test_absolute_times_do_not_matter():
    refuse_slower(compare([replace(MINILM, p50_ms=1e6, tokens_per_second=1.0)], [MINILM]), tolerance=0.0)


def test_a_peer_that_has_become_faster_than_it_was_means_that_we_are_slower():
    assert slower_by(replace(PEER, ratio=0.625), PEER) == pytest.approx(0.2)
    assert slower_by(replace(PEER, ratio=0.4), PEER) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    "changes",
    [{"shape": "B32 L128 (2x16)"}, {"dtype": "fp32"}, {"device": "cuda"}, {"backend": "reference"}, {"name": "other"}],
)
def test_another_measurement_is_not_compared(changes: dict[str, str]):
    assert [change.row for change in compare([MINILM, SCRATCH], [replace(MINILM, **changes), SCRATCH])] == [SCRATCH]


def test_another_split_of_the_same_batch_is_compared():
    assert slower_by(replace(MINILM, shape="B64 L128 (2x32)"), replace(MINILM, shape="B64 L128")) == 0.0


def test_nothing_in_common_is_an_error():
    with pytest.raises(DataError, match="no row of this run"):
        compare([MINILM], [SCRATCH])
