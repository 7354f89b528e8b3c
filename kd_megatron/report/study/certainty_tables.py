"""The report's tables of what the seeds can tell: differences with corrections, and where the noise comes from."""

from typing import Any

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.comparisons import Comparison
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import CONFIDENCE
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, named, numbers, texts

JUDGED = "A verdict, and bold, need a corrected interval without zero and enough students."
NOT_JUDGED = "Neither arm of a pair need be the reference, so that these are outside the declared family: no verdicts."
INTERVALS = {"t": "Student's t", "bootstrap": "BCa bootstrap over seeds"}


def differences(results: StudyResults) -> list[Table]:
    """Every arm against the reference: overall, then task by task; from three arms on, overall for every pair.

    Empty where no interval can be given; `comparisons.missing_seeds` says why.
    """
    if comparisons.missing_seeds(results):
        return []
    overall = [one for quantity in comparisons.OVERALL for one in comparisons.overall(results, quantity)]
    by_task = [one for arm in results.arms for one in comparisons.by_task(results, arm)]
    found = [_differences(results, "differences", "", overall)] if overall else []
    if by_task:
        found.append(_differences(results, "differences_by_task", "The same, task by task", by_task))
    if len(results.arms) > 2:
        pairs = [one for quantity in comparisons.OVERALL for one in comparisons.every_pair(results, quantity)]
        found.append(_differences(results, "differences_of_pairs", "Every pair of arms, not judged", pairs))
    return found


def _differences(results: StudyResults, name: str, title: str, found: list[Comparison]) -> Table:
    are_pairs = any(one.other != results.reference for one in found)
    columns = [
        *texts("arm"),
        *([Column("other", "minus", is_text=True)] if are_pairs else []),
        Column("quantity", "in", is_text=True),
        Column("seeds", "seeds"),
        Column("shown", "difference [95 %]" if are_pairs else f"difference to {results.reference} [95 %]", units.plain),
        *numbers(shown_corrected="corrected interval", comparisons="corrected for"),
        Column("p_holm", "p (Holm)", p_value),
        Column("effect_size", "effect size g", _hundredths),
        *([] if are_pairs else texts("role", "verdict")),
    ]
    note = (
        f"Scores in points, losses in nats (lower is better); paired by seed; intervals: {INTERVALS[results.interval]}"
        f". Corrected intervals hold together at 95 % (Bonferroni) over {_family_in_words(results, are_pairs)}; p: "
        "paired t-test, corrected by Holm over the same family. g: mean of the differences over their deviation, with "
        f"Hedges' correction, from three seeds on. {NOT_JUDGED if are_pairs else JUDGED} n counts students: a "
        "student's score is the mean over its fine-tuning seeds."
    )
    rows = [_difference_row(one) for one in found]
    strong = {(row, "shown") for row, one in enumerate(found) if one.verdict == "better"}
    return Table(name, title, columns, rows, note, frozenset(strong))


def _family_in_words(results: StudyResults, are_pairs: bool) -> str:
    if are_pairs:
        return "the pairs of one measure"
    if results.recipe.protocol is None:
        return "all contrasts of this report, of every arm, task and measure"
    return (
        "the primary contrasts, which the protocol names, or over the secondary ones, which are judged only when all "
        "primary ones are decided"
    )


def p_value(value: float | None) -> str:
    """``"0.012"``, ``"< 0.001"``."""
    if value is None:
        return units.NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _hundredths(value: float | None) -> str:
    return units.NOTHING if value is None else units.signed(value, 2)


def _difference_row(one: Comparison) -> dict[str, Any]:
    scale, digits = (1, 3) if one.quantity in comparisons.LOSSES else (100, 1)
    return {
        **named(one, "arm", "other"),
        "quantity": one.title,
        "seeds": one.difference.n,
        **named(one, "difference", "corrected"),
        "shown": words.difference(one.difference, scale, digits),
        "shown_corrected": words.ends(one.corrected, scale, digits),
        "comparisons": one.num_comparisons,
        "p": one.p_value,
        **named(one, "p_holm", "effect_size", "role", "verdict"),
    }


def variance(results: StudyResults) -> Table | None:
    """How far students and fine-tunings scatter; None unless students were fine-tuned with several seeds."""
    rows = []
    for arm in results.arms:
        for task in (None, *results.tasks):
            found = comparisons.variance(results, arm, task)
            if found:
                row = {"arm": arm, "quantity": task or comparisons.TITLES["score"], "students": found.num_students}
                row |= {**named(found, "pretraining", "finetuning"), "scores": found.num_scores}
                rows.append(row)
    if not rows:
        return None
    columns = [
        *texts("arm", quantity="in"),
        *numbers(students="pretraining seeds", scores="scores"),
        *numbers(units.points, pretraining="deviation of pretraining", finetuning="deviation of fine-tuning"),
    ]
    note = (
        "Standard deviations in points, by one-way random-effects analysis of variance: of students beyond what "
        "fine-tuning explains (0.0 where that is nothing), and of the fine-tuning seeds of one student. More "
        "fine-tuning seeds make the second smaller in a student's mean; only more pretraining seeds make the first "
        f"smaller in an arm's. Both are rough below ten seeds, and the intervals at {CONFIDENCE:.0%} hold both."
    )
    return Table("variance", "Where the scores' noise comes from", columns, rows, note)
