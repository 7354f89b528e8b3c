"""Arms against the reference: differences, corrections, and what may be claimed (docs/statistics.md).

All contrasts of a report to the reference, over arms, tasks and measures, are one declared family: its intervals hold
together. A protocol makes some of them primary: these are a family of their own that is judged first, and the others,
secondary, are judged only when all primary contrasts are decided, so that the chance of any false verdict in a report
stays at 5 %. A claim rests on the corrected interval alone (docs/fairness.md, clause 13). Differences between two
arms of which neither is the reference are shown and not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

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
from kd_megatron.study.power import students_needed

Pair = tuple[str, str, str, str | None]  # arm, other, quantity, task
Role = Literal["primary", "secondary", "exploratory", "not judged"]
OVERALL = ("score", "probe_loss", "own_loss")
LOSSES = ("probe_loss", "own_loss")
DECIDED = ("better", "worse")
TOO_FEW, GATED = "too few students", "primary undecided"  # objections that a family has, not a quantity
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
    role: Role = "exploratory"
    objection: str | None = None  # what takes the verdict away, in a word or two

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
def declared(results: StudyResults) -> list[Comparison]:
    """Every contrast to the reference that has a shared seed: of averages and losses first, then task by task."""
    reference = results.reference
    others = [arm for arm in results.arms if arm != reference]
    wanted: list[Pair] = [(arm, reference, quantity, None) for quantity in OVERALL for arm in others]
    wanted += [(arm, reference, "task", task) for arm in others for task in results.tasks]
    protocol = results.recipe.protocol
    if protocol is None:
        return _family(results, wanted, "exploratory")
    named = protocol.arms or others
    first = [pair for pair in wanted if pair[2] == protocol.measure and pair[0] in named]
    primary = _family(results, first, "primary")
    secondary = _family(results, [pair for pair in wanted if pair not in first], "secondary")
    if len(primary) < len(named) or any(one.verdict not in DECIDED for one in primary):
        secondary = [
            replace(one, objection=one.objection or GATED) if one.difference.has_interval else one for one in secondary
        ]
    return [*primary, *secondary]


def overall(results: StudyResults, quantity: str) -> list[Comparison]:
    """Of `declared`, each arm against the reference in ``"score"``, ``"probe_loss"`` or ``"own_loss"``."""
    return [one for one in declared(results) if one.quantity == quantity and one.task is None]


def by_task(results: StudyResults, arm: str) -> list[Comparison]:
    """Of `declared`, ``arm`` against the reference, task by task."""
    return [one for one in declared(results) if one.task is not None and one.arm == arm]


@once
def every_pair(results: StudyResults, quantity: str) -> list[Comparison]:
    """Each arm against each one before it; corrected for the pairs, and not judged."""
    pairs: list[Pair] = [(arm, before, quantity, None) for before, arm in combinations(results.arms, 2)]
    return _family(results, pairs, "not judged")


def ahead(results: StudyResults, quantity: str, task: str | None = None) -> list[str]:
    """The arms that are better than the reference beyond doubt."""
    found = (one for one in declared(results) if (one.quantity, one.task) == ("task" if task else quantity, task))
    return [one.arm for one in found if one.verdict == "better"]


def against_reference(results: StudyResults, best: str, other: str, quantity: str) -> Comparison | None:
    """``best`` against ``other``, one of which is the reference; None where they share no seed."""
    found = {one.arm: one for one in overall(results, quantity)}
    return found.get(best) if other == results.reference else _turned(found.get(other))


def _turned(found: Comparison | None) -> Comparison | None:
    """The same from the other arm's side."""
    if found is None:
        return None
    turned = replace(found, arm=found.other, other=found.arm, difference=_negative(found.difference))
    effect = None if found.effect_size is None else -found.effect_size
    return replace(turned, corrected=_negative(found.corrected), effect_size=effect)


def _negative(size: Estimate) -> Estimate:
    low, high = (None if end is None else -end for end in (size.high, size.low))
    return Estimate(size.n, -size.mean, low, high)


def check_interval(results: StudyResults) -> None:
    """Raises `RecipeError` when there are too few seeds for the kind of interval that was asked for."""
    for arm in results.arms:
        for quantity in OVERALL:
            results.mean(arm, quantity)
    declared(results)


def _family(results: StudyResults, pairs: Sequence[Pair], role: Role) -> list[Comparison]:
    """Those of ``pairs`` that share a seed, corrected together."""
    values = [
        paired_values(results.by_seed(arm, quantity, task), results.by_seed(other, quantity, task))
        for arm, other, quantity, task in pairs
    ]
    known = [(pair, differences) for pair, differences in zip(pairs, values, strict=True) if differences]
    needed = students_needed(results.recipe, len(known)) if known else 0
    found = judged([differences for _, differences in known], results.interval)
    return [
        Comparison(
            *(*pair, *sure, hedges_g(differences)),
            role=role,
            objection=role if role == "not judged" else _doubt(results, pair, len(differences), needed),
        )
        for (pair, differences), sure in zip(known, found, strict=True)
        if sure
    ]


def _doubt(results: StudyResults, pair: Pair, num_students: int, needed: int) -> str | None:
    """What takes the verdict away: of the quantity, else that a plain effect would not have been seen."""
    return objection(results, *pair[2:]) or (TOO_FEW if 2 <= num_students < needed else None)


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
