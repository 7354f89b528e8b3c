"""Students and their fine-tunings, drawn by chance, and how often intervals hold what they should.

.venv/bin/python -m tests.analysis.two_levels     # the tables of docs/statistics.md, by 20,000 studies a cell
"""

import numpy

from kd_megatron.analysis.statistics import estimate, finetuning_variance

STUDENTS, FINETUNINGS = (2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5)
GOOD, MAJORITY = 77.0, 12.0  # points: as STS-B's, of a fine-tuning that learnt and of one that collapsed
OF_SEED, OF_STUDENT, OF_FINETUNING = (
    1.0,
    1.5,
    2.0,
)  # standard deviations: shared by arms, own to a student, to its tuning
COLLAPSED = 0.2  # of fine-tunings


def scores(generator, studies, students, finetunings, collapsed):
    """[studies, 2, students, finetunings] of an arm and the reference; ``collapsed``: of the fine-tunings of both."""
    shape = (studies, 2, students, finetunings)
    drawn = GOOD + generator.normal(0, OF_SEED, (studies, 1, students, 1))
    drawn = drawn + generator.normal(0, OF_STUDENT, shape[:3])[..., None] + generator.normal(0, OF_FINETUNING, shape)
    majority = MAJORITY + generator.normal(0, 0.5, shape)
    return numpy.where(generator.random(shape) < numpy.reshape(collapsed, (2, 1, 1)), majority, drawn)


def coverage(studies, students, finetunings, collapsed, seed=0):
    """Share of studies whose 95 % intervals hold an arm's true mean, and its true difference to the reference."""
    drawn = scores(numpy.random.default_rng(seed), studies, students, finetunings, collapsed)
    truth = GOOD - (GOOD - MAJORITY) * numpy.asarray(collapsed)
    held = [0, 0]
    for own, reference in drawn:
        floors = [finetuning_variance(arm.tolist()) for arm in (own, reference)]
        means = [arm.mean(axis=1) for arm in (own, reference)]
        mean = estimate(means[0].tolist(), floor=floors[0])
        difference = estimate((means[0] - means[1]).tolist(), floor=sum(floors))
        held[0] += mean.low <= truth[0] <= mean.high
        held[1] += difference.low <= truth[0] - truth[1] <= difference.high
    return held[0] / studies, held[1] / studies


def main(studies=20_000):
    """Print coverage in percent: of a mean, of a difference where both arms collapse, and where one of them does."""
    print("| students | fine-tunings | none collapses: mean, difference | 20 %: mean | difference | of one arm alone |")
    print("| --- | --- | --- | --- | --- | --- |")
    for students in STUDENTS:
        for finetunings in FINETUNINGS:
            none = coverage(studies, students, finetunings, (0.0, 0.0))
            both = coverage(studies, students, finetunings, (COLLAPSED, COLLAPSED))
            one = coverage(studies, students, finetunings, (COLLAPSED, 0.0))[1]
            shown = [f"{100 * value:.1f}" for value in (*both, one)]
            print(f"| {students} | {finetunings} | {100 * none[0]:.1f}, {100 * none[1]:.1f} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
