"""Arms against the reference, and against each other: differences, corrections, and what may be claimed.

All contrasts to the reference in one report are one family (`study.contrasts`); those that a protocol calls primary
are judged first, by themselves, and nothing else is judged before each of them is decided. Two other arms are judged
against each other only in a quantity in which one of them differs from the reference. So the chance of any false
verdict in a whole report is at most 5 % (docs/statistics.md; docs/fairness.md, clause 13). Every verdict, bold cell and
winner is read off these comparisons.
"""

from collections.abc import Sequence
from itertools import combinations

from kd_megatron.analysis.comparison import LOSSES, TITLES, Comparison
from kd_megatron.analysis.fitness import Objection, objections, too_few_students
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import (
    VarianceComponents,
    hedges_g,
    judged,
    paired_values,
    variance_components,
)
from kd_megatron.study.contrasts import Contrast, Families, families

OVERALL = ("score", "probe_loss")


@once
def declared(results: StudyResults) -> list[Comparison]:
    """Every contrast of the report whose values are known, each judged with its family; by quantity, then by arm.

    Nothing beside the primary ones is judged before each of those, whether it is known yet or not, is decided.
    """
    asked, reference = planned(results), results.reference
    found = _family(results, [(one, reference, None) for one in asked.contrasts if one in asked.primary])
    closed = _undecided(asked, found)
    found += _family(results, [(one, reference, closed) for one in asked.contrasts if one not in asked.primary])
    order = {contrast: place for place, contrast in enumerate(asked.contrasts)}
    return sorted(found, key=lambda one: order[Contrast(one.arm, one.quantity, one.task)])


def _undecided(asked: Families, primary: Sequence[Comparison]) -> Objection | None:
    """What keeps the secondary contrasts from being judged: a primary one that is not decided."""
    decided = {Contrast(one.arm, one.quantity, one.task) for one in primary if one.is_decided}
    open_ones = [one for one in asked.contrasts if one in asked.primary - decided]
    if not open_ones:
        return None
    first = open_ones[0]
    return Objection(
        "primary undecided",
        f"Secondary contrasts are not judged, because the protocol's primary contrast of {first.arm} in the "
        f"{TITLES[first.quantity]} is not decided.",
    )


@once
def overall(results: StudyResults, quantity: str) -> list[Comparison]:
    """Each arm against the reference in ``"score"``, ``"probe_loss"`` or ``"own_loss"``."""
    return [one for one in declared(results) if one.quantity == quantity]


@once
def by_task(results: StudyResults, arm: str) -> list[Comparison]:
    """``arm`` against the reference, task by task."""
    return [one for one in declared(results) if one.quantity == "task" and one.arm == arm]


@once
def _among_others(results: StudyResults, quantity: str, task: str | None) -> list[Comparison]:
    """Each pair of arms beside the reference; judged after the primary ones, where one of both differs from it."""
    others = [arm for arm in results.arms if arm != results.reference]
    decided = [one for one in declared(results) if one.is_decided]
    differing = {one.arm for one in decided if (one.quantity, one.task) == (quantity, task)}
    closed = _undecided(planned(results), declared(results))
    unequal = Objection(
        f"both undecided to {results.reference}",
        f"Two other arms are judged against each other only where one of them differs from {results.reference}.",
    )
    pairs = [
        (Contrast(arm, quantity, task), before, closed or (None if differing & {arm, before} else unequal))
        for before, arm in combinations(others, 2)
    ]
    return _family(results, pairs)


@once
def between(results: StudyResults, arm: str, other: str, quantity: str, task: str | None = None) -> Comparison | None:
    """Any arm against any other one; None where they share no value."""
    if results.reference in (arm, other):
        found = [one for one in declared(results) if (one.quantity, one.task) == (quantity, task)]
    else:
        found = _among_others(results, quantity, task)
    for one in found:
        if (one.arm, one.other) == (arm, other):
            return one
        if (one.other, one.arm) == (arm, other):
            return one.reversed
    return None


@once
def every_pair(results: StudyResults, quantity: str) -> list[Comparison]:
    """Each arm against each one before it, in ``"score"`` or ``"probe_loss"``."""
    pairs = [between(results, arm, before, quantity) for before, arm in combinations(results.arms, 2)]
    return [one for one in pairs if one]


def all_comparisons(results: StudyResults) -> list[Comparison]:
    """Everything that is judged and printed: to the reference, then of every pair."""
    return [*declared(results), *(one for quantity in OVERALL for one in every_pair(results, quantity))]


@once
def winner(results: StudyResults, quantity: str, task: str | None = None) -> str | None:
    """The arm that is better than every other one by verdicts; None when there is none."""
    means = {arm: results.mean(arm, quantity, task) for arm in results.arms}
    if len(means) < 2 or any(mean is None for mean in means.values()):
        return None
    sign = -1 if quantity in LOSSES else 1
    best = max(results.arms, key=lambda arm: sign * (mean.mean if (mean := means[arm]) else 0.0))
    found = [between(results, best, arm, quantity, task) for arm in results.arms if arm != best]
    return best if all(one is not None and one.verdict == "better" for one in found) else None


def check_interval(results: StudyResults) -> None:
    """Raises `RecipeError` when there are too few seeds for the kind of interval that was asked for."""
    for arm in results.arms:
        for quantity in OVERALL:
            results.mean(arm, quantity)
    declared(results)


@once
def planned(results: StudyResults) -> Families:
    """The families of the report, by its recipe."""
    return families(results.recipe)


Pair = tuple[Contrast, str, Objection | None]  # an arm in a quantity, the other arm, why it is not judged (None: it is)


def _family(results: StudyResults, pairs: Sequence[Pair]) -> list[Comparison]:
    """Contrasts that are corrected for alike, those of them whose values are known."""
    values = [
        paired_values(results.by_seed(one.arm, one.quantity, one.task), results.by_seed(other, one.quantity, one.task))
        for one, other, _ in pairs
    ]
    known = [(pair, differences) for pair, differences in zip(pairs, values, strict=True) if differences]
    if not known:
        return []
    contrast, other, _ = known[0][0]
    asked, is_of_reference = planned(results), other == results.reference
    num = asked.num_corrected_for(contrast) if is_of_reference else asked.num_among_others
    role = asked.role(contrast) if is_of_reference or not asked.primary else "secondary"
    floors = [_finetuning_variance(results, pair) for pair, _ in known]
    found = judged([differences for _, differences in known], results.interval, num, floors)
    comparisons = []
    for (pair, differences), sure in zip(known, found, strict=True):
        if sure:
            (one, other, closed), size = pair, hedges_g(differences)
            doubt = _objection(results, one, sure[0].n, num, closed)
            effect = _smallest_effect(results, one.quantity)
            comparisons.append(Comparison(one.arm, other, one.quantity, one.task, role, *sure, size, effect, doubt))
    return comparisons


def _finetuning_variance(results: StudyResults, pair: Pair) -> float:
    """Of a student's difference: that of both arms."""
    one, other, _ = pair
    return sum(results.finetuning_variance(arm, one.quantity, one.task) for arm in (one.arm, other))


def _objection(
    results: StudyResults, one: Contrast, num_students: int, num_contrasts: int, closed: Objection | None
) -> Objection | None:
    """The gravest: of the instruments, of too few students, of what had to be decided before."""
    promised = results.recipe.protocol.students if results.recipe.protocol else None
    found = [
        *objections(results, one.quantity, one.task),
        *too_few_students(num_students, num_contrasts, promised),
        *([closed] if closed else []),
    ]
    return next(iter(found), None)


def _smallest_effect(results: StudyResults, quantity: str) -> float | None:
    """The protocol's, of its own measure, in the base unit."""
    protocol = results.recipe.protocol
    if protocol is None or protocol.smallest_effect is None or protocol.measure != quantity:
        return None
    return protocol.smallest_effect if quantity in LOSSES else protocol.smallest_effect / 100


@once
def variance(results: StudyResults, arm: str, task: str | None = None) -> VarianceComponents | None:
    """How much of a score's noise is of pretraining, and how much of fine-tuning; ``task`` None: of the average."""
    tasks = [task] if task else results.tasks
    return variance_components([run.finetuning_scores(tasks) for run in results.runs.get(arm, {}).values()])


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
