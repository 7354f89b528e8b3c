"""Do the contenders of `bench finetune` end with the same score? Their dev scores, beside the first contender's."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from benchmarks.rows import Row, markdown_table
from kd_megatron.analysis.statistics import CONFIDENCE, Estimate, deviation, estimate
from kd_megatron.console import units
from kd_megatron.report.page import words

HEADS = ("kernel", "backend", "runs", "score", "minus the first [95 %]")
NUM_TEXT_COLUMNS = 2
FEWEST_RUNS = 3  # intervals of fewer say nothing
NOTE = (
    "Dev scores in points: mean over the rounds and half of Student's 95 % interval; difference to the first contender "
    "with Welch's interval, as runs of one seed share nothing but its number."
)


def score_lines(rows: Sequence[Row], record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line of `HEADS` for each row whose scores were recorded in at least `FEWEST_RUNS` rounds."""
    scores: dict[str, list[float]] = record.get("scores", {})
    lines: list[tuple[str, ...]] = []
    for row in rows:
        own, first = (scores.get(f"{row.name}, {backend}", []) for backend in (row.backend, row.ratio_to))
        if min(len(own), len(first)) >= FEWEST_RUNS:
            difference = "" if row.backend == row.ratio_to else _difference(unpaired_difference(own, first))
            lines.append((row.name, row.backend, str(len(own)), _mean(estimate(own)), difference))
    return lines


def as_markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """The lines as a table, and what they mean."""
    return markdown_table(HEADS, NUM_TEXT_COLUMNS, lines, NOTE)


def unpaired_difference(
    own: Sequence[float], reference: Sequence[float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Mean of ``own`` minus that of ``reference``, at least two values each that share nothing (Welch 1947).

    Returns:
        ``n`` is the smaller number. Without an interval where neither varies; None where a value is not finite.
    """
    if not all(math.isfinite(value) for value in (*own, *reference)):
        return None
    num, mean = min(len(own), len(reference)), math.fsum(own) / len(own) - math.fsum(reference) / len(reference)
    if deviation(own) == 0 and deviation(reference) == 0:
        return Estimate(num, mean)
    found = stats.ttest_ind(own, reference, equal_var=False).confidence_interval(confidence)
    return Estimate(num, mean, float(found.low), float(found.high))


def _mean(found: Estimate | None) -> str:
    return "not finite" if found is None else f"{100 * found.mean:.1f} ± {100 * (found.half_width or 0.0):.1f}"


def _difference(found: Estimate | None) -> str:
    if found is None:
        return "not finite"
    if found.low is None or found.high is None:
        return f"{units.signed(100 * found.mean, 1)}, no variation"
    return words.score_difference(found)
