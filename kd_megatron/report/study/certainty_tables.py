"""The report's tables of what the seeds can tell: differences with corrections, and where the noise comes from."""

from typing import Any

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.comparison import LOSSES, TITLES, Comparison
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import CONFIDENCE
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, named, numbers, texts

INTERVALS = {"t": "Student's t", "bootstrap": "BCa bootstrap over seeds"}
CORRECTED = {"t": "", "bootstrap": " (corrected ones, and so verdicts: Student's t)"}


def differences(results: StudyResults) -> list[Table]:
    """Every arm against the reference: overall, then task by task; from three arms on, overall for every pair.

    Empty where no interval can be given; `comparisons.missing_seeds` says why.
    """
    if comparisons.missing_seeds(results):
        return []
    overall = [one for one in comparisons.declared(results) if one.quantity in comparisons.OVERALL]
    by_task = [one for arm in results.arms for one in comparisons.by_task(results, arm)]
    found = [_differences(results, "differences", "", overall)] if overall else []
    if by_task:
        found.append(_differences(results, "differences_by_task", "The same, task by task", by_task))
    if len(results.arms) > 2:
        pairs = [one for quantity in comparisons.OVERALL for one in comparisons.every_pair(results, quantity)]
        found.append(_differences(results, "differences_of_pairs", "The same for every pair of arms", pairs))
    return found


def _differences(results: StudyResults, name: str, title: str, found: list[Comparison]) -> Table:
    are_pairs = any(one.other != results.reference for one in found)
    columns = [
        *texts("arm"),
        *([Column("other", "minus", is_text=True)] if are_pairs else []),
        Column("role", "contrast", is_text=True),
        Column("quantity", "in", is_text=True),
        Column("seeds", "seeds"),
        Column("shown", "difference [95 %]" if are_pairs else f"difference to {results.reference} [95 %]", units.plain),
        *numbers(shown_corrected="corrected interval", comparisons="corrected for"),
        Column("p_holm", "p (Holm)", p_value),
        Column("effect_size", "effect size g", _hundredths),
        *texts("verdict"),
        *size_columns(found),
    ]
    note = (
        f"Scores in points, losses in nats (lower is better); paired by seed; intervals: {INTERVALS[results.interval]}"
        f"{CORRECTED[results.interval]}; those of scores are never narrower than fine-tunings alone would make them. "
        f"{_family_in_words(results)}{_pairs_in_words(results) if are_pairs else ''} p: paired t-test, corrected by "
        "Holm over the same families. g: mean of the differences over their deviation, with Hedges' correction, from "
        "three seeds on. A verdict, and bold, need a corrected interval without zero, and enough students. n counts "
        "students: a student's score is the mean over its fine-tuning seeds."
    )
    rows = [_difference_row(one) for one in found]
    strong = {(row, "shown") for row, one in enumerate(found) if one.verdict == "better"}
    return Table(name, title, columns, rows, note, frozenset(strong))


def _family_in_words(results: StudyResults) -> str:
    """What corrected intervals are corrected for."""
    planned = comparisons.planned(results)
    whole = f"{len(planned.contrasts)} contrasts to {results.reference}"
    parts = "arms x (losses by probe and own head, average, tasks)" if results.tasks else "arms x losses"
    if not planned.primary:
        return (
            f"Corrected intervals hold together at 95 % (Bonferroni) over all of this report's {whole}, {parts}: one "
            "family, exploratory, as the recipe has no protocol."
        )
    return (
        f"Corrected intervals (Bonferroni) of the protocol's {len(planned.primary)} primary contrasts hold together at "
        f"95 %. The others are secondary, are corrected for all {whole}, {parts}, and are judged only where every "
        "primary one is decided, which keeps the chance of any false verdict in this report at 5 %."
    )


def _pairs_in_words(results: StudyResults) -> str:
    """The same of two arms beside the reference."""
    return (
        f" Two other arms are judged against each other only in a quantity in which one of them differs from "
        f"{results.reference}, corrected for {comparisons.planned(results).num_among_others}."
    )


def size_columns(found: list[Comparison]) -> list[Column]:
    """What intervals say of the smallest effect of interest, where the protocol names one of what was ``found``."""
    named_one = next((size for one in found if (size := _smallest_effect(one))), None)
    return [Column("size", f"smallest effect of interest: {named_one}", is_text=True)] if named_one else []


def _smallest_effect(one: Comparison) -> str | None:
    """``"0.05 nats"``, ``"0.5 points"``."""
    if one.smallest_effect is None:
        return None
    is_loss = one.quantity in LOSSES
    return f"{one.smallest_effect:g} nats" if is_loss else f"{100 * one.smallest_effect:g} points"


def size_in_words(one: Comparison) -> str | None:
    """What the corrected interval says of the smallest effect of interest; None where none is named or judged."""
    if one.is_equivalent is None:
        return None
    size = _smallest_effect(one)
    if one.is_equivalent:
        return f"equivalent within {size}"
    if not one.is_decided:
        return f"effects above {size} are not excluded"
    return f"at least {size}" if one.excludes_small_effects else f"effects below {size} are not excluded"


def p_value(value: float | None) -> str:
    """``"0.012"``, ``"< 0.001"``."""
    if value is None:
        return units.NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _hundredths(value: float | None) -> str:
    return units.NOTHING if value is None else units.signed(value, 2)


def _difference_row(one: Comparison) -> dict[str, Any]:
    scale, digits = (1, 3) if one.quantity in LOSSES else (100, 1)
    return {
        **named(one, "arm", "other", "role"),
        "quantity": one.title,
        "seeds": one.difference.n,
        **named(one, "difference", "corrected"),
        "shown": words.difference(one.difference, scale, digits),
        "shown_corrected": words.ends(one.corrected, scale, digits),
        "comparisons": one.num_comparisons,
        "p": one.p_value,
        **named(one, "p_holm", "effect_size", "verdict"),
        "size": size_in_words(one),
    }


def variance(results: StudyResults) -> Table | None:
    """How far students and fine-tunings scatter; None unless students were fine-tuned with several seeds."""
    rows = []
    for arm in results.arms:
        for task in (None, *results.tasks):
            found = comparisons.variance(results, arm, task)
            if found:
                row = {"arm": arm, "quantity": task or TITLES["score"], "students": found.num_students}
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
