"""Ways to make the interval of a mean score, held against each other: the table of docs/statistics.md.

.venv/bin/python -m tests.analysis.interval_candidates

Axes: S studies, N students, K fine-tunings of each, B bootstrap draws.
"""

import numpy
from scipy import stats

from tests.analysis.two_levels import COLLAPSED, GOOD, MAJORITY, scores

SETTINGS = ((3, 3), (3, 5), (4, 3), (6, 3), (8, 5))
NUM_ARMS, STUDIES, DRAWS = 4, 4_000, 400


def mean_squares(drawn):
    """Between students and within them, [S] each, of scores [S, N, K]."""
    _, _, finetunings = drawn.shape
    return finetunings * drawn.mean(2).var(1, ddof=1), drawn.var(2, ddof=1).mean(1)


def quantile(degrees):
    return stats.t.ppf(0.975, degrees)


def over_students(drawn, others):
    """Student's t over the means of students: half widths [S]."""
    _, students, finetunings = drawn.shape
    return quantile(students - 1) * numpy.sqrt(mean_squares(drawn)[0] / (students * finetunings))


def inflated(drawn, others):
    """The same, half as wide again."""
    return 1.5 * over_students(drawn, others)


def with_floor(drawn, others):
    """The same, the mean square between students being no less than that within: what reports use."""
    _, students, finetunings = drawn.shape
    larger = numpy.maximum(*mean_squares(drawn))
    return quantile(students - 1) * numpy.sqrt(larger / (students * finetunings))


def mixed_model(drawn, others):
    """Random effects, that of students taken as zero where it is estimated below, which gives more degrees."""
    _, students, finetunings = drawn.shape
    between, within = mean_squares(drawn)
    flat, count = drawn.reshape(len(drawn), -1).var(1, ddof=1), students * finetunings
    two_levels = quantile(students - 1) * numpy.sqrt(between / count)
    return numpy.where(between < within, quantile(count - 1) * numpy.sqrt(flat / count), two_levels)


def pooled(drawn, others):
    """The variance between students taken as one of all arms."""
    _, students, finetunings = drawn.shape
    squares = numpy.mean([mean_squares(one)[0] for one in (drawn, *others)], axis=0)
    return quantile(NUM_ARMS * (students - 1)) * numpy.sqrt(squares / (students * finetunings))


CANDIDATES = {
    "t over students": over_students,
    "t, 1.5 times as wide": inflated,
    "mixed model": mixed_model,
    "t, variance pooled over arms": pooled,
    "t with the floor of fine-tunings": with_floor,
}


def bootstrap(generator, drawn):
    """Percentile interval of resampled students and resampled fine-tunings of each: its ends, [2, S]."""
    studies, students, finetunings = drawn.shape
    rows = generator.integers(0, students, (studies, DRAWS, students, 1))
    columns = generator.integers(0, finetunings, (studies, DRAWS, students, finetunings))
    means = drawn[numpy.arange(studies)[:, None, None, None], rows, columns].mean((2, 3))
    return numpy.quantile(means, [0.025, 0.975], axis=1)


def coverage(students, finetunings, collapsed, others_collapse):
    """Candidate -> share of studies whose interval holds the mean of an arm, whose fellow arms collapse or do not."""
    generator = numpy.random.default_rng(0)
    shares = (collapsed, collapsed if others_collapse else 0.0)
    pairs = [scores(generator, STUDIES, students, finetunings, shares) for _ in range(NUM_ARMS - 1)]
    drawn, others = pairs[0][:, 0], [pair[:, 1] for pair in pairs]
    truth = GOOD - (GOOD - MAJORITY) * collapsed
    off = abs(drawn.mean((1, 2)) - truth)
    held = {name: float((off <= half(drawn, others)).mean()) for name, half in CANDIDATES.items()}
    low, high = bootstrap(generator, drawn[:1000])
    return held | {"hierarchical bootstrap": float(((low <= truth) & (truth <= high)).mean())}


def main():
    """Print coverage in percent, each candidate by settings."""
    print("| candidate |", " | ".join(f"{students} x {tuned}" for students, tuned in SETTINGS), "|")
    print("| --- |" + " --- |" * len(SETTINGS))
    found = {
        setting: [
            coverage(*setting, share, others) for share, others in ((0.0, True), (COLLAPSED, True), (COLLAPSED, False))
        ]
        for setting in SETTINGS
    }
    for name in (*CANDIDATES, "hierarchical bootstrap"):
        cells = (", ".join(f"{100 * world[name]:.0f}" for world in worlds) for worlds in found.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
