"""Coverage of the intervals of scores where fine-tunings collapse: the table of docs/statistics.md.

python -m tests.analysis.interval_coverage
"""

import numpy
from numpy.typing import NDArray
from scipy import stats

NUM_DRAWS = 40_000
COLLAPSED, FALL = 0.2, 30.0  # share of fine-tunings, points
BETWEEN, WITHIN = 1.0, 2.0  # standard deviations of students and of fine-tunings, points


def student_means(
    generator: numpy.random.Generator, num_draws: int, num_students: int, num_seeds: int, collapsed: float
) -> NDArray[numpy.float64]:
    """Mean scores of students, [draws, students], about 0 where none of their fine-tunings collapses."""
    own = generator.normal(0.0, BETWEEN, (num_draws, num_students, 1))
    scores = own + generator.normal(0.0, WITHIN, (num_draws, num_students, num_seeds))
    means: NDArray[numpy.float64] = numpy.where(generator.random(scores.shape) < collapsed, -FALL, scores).mean(axis=2)
    return means


def coverage(values: NDArray[numpy.float64], truth: float) -> float:
    """The share of draws, [draws, students], whose 95 % t-interval has ``truth`` in it."""
    num = values.shape[1]
    half = stats.t.ppf(0.975, num - 1) * values.std(axis=1, ddof=1) / num**0.5
    return float((numpy.abs(values.mean(axis=1) - truth) <= half).mean())


def main() -> None:
    """Print a row for each number of fine-tunings."""
    generator, truth = numpy.random.default_rng(0), -COLLAPSED * FALL
    sizes = (3, 4, 5, 6, 8)
    print("students", *sizes, sep="\t")
    for num_seeds in (3, 5):
        rows: dict[str, list[str]] = {"mean": [], "difference": []}
        for num in sizes:
            arm, other = (student_means(generator, NUM_DRAWS, num, num_seeds, share) for share in (COLLAPSED, 0.0))
            for what, values in (("mean", arm), ("difference", arm - other)):
                rows[what].append(f"{100 * coverage(values, truth):.0f} %")
        for what, shown in rows.items():
            print(f"{num_seeds} fine-tunings, {what}", *shown, sep="\t")


if __name__ == "__main__":
    main()
