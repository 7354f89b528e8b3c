"""Arms against the reference, and against each other: differences, corrections, and what may be claimed.

Families are corrected separately: the average score (or the probe's loss) over the arms that are compared, the same
over all pairs of arms, and the tasks within each arm. A claim rests on the corrected interval alone (docs/fairness.md,
clause 13).
"""

from dataclasses import dataclass
from itertools import combinations

from kd_megatron.analysis.fitness import objection
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.statistics import (
    Estimate,
    VarianceComponents,
    hedges_g,
    judged,
    paired_values,
    variance_components,
    verdict,
)

Pair = tuple[str, str, str, str | None]  # arm, other, quantity, task
OVERALL = ("score", "probe_loss")
LOSSES = ("probe_loss", "own_loss")
TITLES = {
    "score": "average", "probe_loss": "held-out MLM loss (probe)", "own_loss": "held-out MLM loss (own head)",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One arm against another in one quantity, over the seeds they share; in the quantity's base unit."""

    arm: str
    other: str
    quantity: str  # of StudyResults.by_seed
    task: str | None
    difference: Estimate
    corrected: Estimate  # the same with the interval that holds together with its family's
    num_comparisons: int  # in the family
    p_value: float | None
    p_holm: float | None
    effect_size: float | None  # Hedges' g of the paired differences
    objection: str | None = None  # what takes the verdict away (`analysis.fitness`), in a word or two

    @property
    def title(self) -> str:
        """The task, or what is averaged."""
        return self.task or TITLES[self.quantity]

    @property
    def is_better(self) -> bool:
        """Whether the arm is ahead; it may be by chance."""
        return self.difference.mean < 0 if self.quantity in LOSSES else self.difference.mean > 0

    @property
    def verdict(self) -> str:
        """``"better"`` or ``"worse"`` when the corrected interval excludes zero, else why nothing can be said."""
        return verdict(self.difference, self.corrected, self.objection, "better" if self.is_better else "worse")


@once
def overall(results: StudyResults, quantity: str) -> list[Comparison]:
    """Each arm against the reference in ``"score"``, ``"probe_loss"`` or ``"own_loss"``; one family."""
    others = [arm for arm in results.arms if arm != results.reference]
    return _family(results, [(arm, results.reference, quantity, None) for arm in others])


@once
def every_pair(results: StudyResults, quantity: str) -> list[Comparison]:
    """Each arm against each one before it, in ``"score"`` or ``"probe_loss"``; one family."""
    return _family(results, [(arm, before, quantity, None) for before, arm in combinations(results.arms, 2)])


@once
def by_task(results: StudyResults, arm: str) -> list[Comparison]:
    """``arm`` against the reference, task by task; one family."""
    if arm == results.reference:
        return []
    return _family(results, [(arm, results.reference, "task", task) for task in results.tasks])


def all_comparisons(results: StudyResults) -> list[Comparison]:
    """Both families, overall first."""
    found = [comparison for quantity in OVERALL for comparison in overall(results, quantity)]
    return found + [comparison for arm in results.arms for comparison in by_task(results, arm)]


@once
def winner(results: StudyResults, quantity: str, task: str | None = None) -> str | None:
    """The arm that is ahead of every other one, beyond doubt; None when there is none.

    Every corrected interval of its differences must exclude zero; the family is all pairs with it, in all tasks when
    ``task`` is given.
    """
    means = {arm: results.mean(arm, quantity, task) for arm in results.arms}
    if len(means) < 2 or any(mean is None for mean in means.values()):
        return None
    sign = -1 if quantity in LOSSES else 1
    best = max(results.arms, key=lambda arm: sign * (mean.mean if (mean := means[arm]) else 0.0))
    pairs = [(best, arm, quantity, task) for arm in results.arms if arm != best]
    found = _family(results, pairs, len(pairs) * (len(results.tasks) if task else 1))
    return best if len(found) == len(pairs) and all(one.verdict == "better" for one in found) else None


@once
def best_against(results: StudyResults, best: str, other: str, quantity: str) -> Comparison | None:
    """The arm picked as the best against ``other``, corrected for all the arms it was picked from."""
    found = _family(results, [(best, other, quantity, None)], len(results.arms) - 1)
    return found[0] if found else None


def check_interval(results: StudyResults) -> None:
    """Raises `RecipeError` when there are too few seeds for the kind of interval that was asked for."""
    for arm in results.arms:
        for quantity in OVERALL:
            results.mean(arm, quantity)
    all_comparisons(results)


def _family(results: StudyResults, pairs: list[Pair], num_comparisons: int | None = None) -> list[Comparison]:
    values = [
        paired_values(results.by_seed(arm, quantity, task), results.by_seed(other, quantity, task))
        for arm, other, quantity, task in pairs
    ]
    known = [(pair, differences) for pair, differences in zip(pairs, values, strict=True) if differences]
    found = judged([differences for _, differences in known], results.interval, num_comparisons)
    return [
        Comparison(arm, other, quantity, task, *sure, hedges_g(differences), objection(results, quantity, task))
        for ((arm, other, quantity, task), differences), sure in zip(known, found, strict=True)
        if sure
    ]


@once
def variance(results: StudyResults, arm: str, task: str | None = None) -> VarianceComponents | None:
    """How much of a score's noise is of pretraining, and how much of fine-tuning; ``task`` None: of the average."""
    scores = [_finetuning_scores(run, task, results.averaged_tasks) for run in results.runs.get(arm, {}).values()]
    return variance_components(scores)


def _finetuning_scores(run: FinishedRun, task: str | None, tasks: list[str]) -> list[float]:
    """One score for each fine-tuning seed that all the tasks have."""
    names = [task] if task else tasks
    wanted = [run.tasks[name].scores if name in run.tasks else {} for name in names]
    if not wanted:
        return []
    shared = sorted(set.intersection(*(set(scores) for scores in wanted)))
    return [sum(scores[seed] for scores in wanted) / len(wanted) for seed in shared]


def missing_seeds(results: StudyResults) -> str | None:
    """Why there is no table of differences, and what to do; None when there can be one."""
    compared = [arm for arm in results.arms if arm != results.reference]
    if not compared or results.reference not in results.arms:
        return None
    shared = {arm: len(results.runs[arm].keys() & results.runs[results.reference].keys()) for arm in compared}
    if max(shared.values()) >= 2:
        return None
    return (
        f"No table of differences: an interval needs at least 2 seeds that an arm and {results.reference} share, and "
        f"there {'is 1' if max(shared.values()) == 1 else 'is none'}. Add seeds to the recipe (seeds: [0, 1, 2]) and "
        "run the same command again; what is finished stays."
    )
