"""The answer in one sentence, no stronger than the seeds allow."""

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.comparison import Comparison
from kd_megatron.analysis.fitness import objections
from kd_megatron.analysis.measure import Measure, measure_of, ranking
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units
from kd_megatron.console.units import budget_in_words, num_seeds
from kd_megatron.report.study.certainty_tables import size_in_words


def answer(results: StudyResults) -> str:
    """Which arm is best, by how much, and whether these seeds can tell."""
    measure = measure_of(results)
    ranked = ranking(results, measure)
    if not ranked:
        return "No run has finished yet: there is no answer."
    best, mean, seeds = ranked[0]
    budget = budget_in_words(results.recipe.budget)
    value = f"{measure.scale * mean:.{measure.digits}f} {measure.unit}, {num_seeds(len(seeds))}"
    opening = f"Under a budget of {budget}, {best} has the best {measure.name} ({value})"
    if len(ranked) == 1:
        return f"{opening}; no other arm has a result to compare it with."
    if unfair := unfair_checks(results):
        checks = "; ".join(unfair)
        return (
            f"No winner is named: arms with the same seed differ in more than their objective ({checks}), as the "
            "fairness check below has it."
        )
    if found := objections(results, measure.quantity):
        return f"No winner is named by the {measure.name}. {found[0].sentence}"
    other = results.reference if best != results.reference else ranked[1][0]
    gap = comparisons.between(results, best, other, measure.quantity)
    if gap is None:
        return f"{opening}; {other} shares no seed with it, so no difference can be given."
    rest = [arm for arm, _, _ in ranked if arm not in (best, other)]
    near = _not_told_apart(results, best, rest, measure) if gap.is_decided else []
    doubt = f"; these seeds cannot tell {best} from {' or '.join(near)}" if near else ""
    return f"{opening}, {_gap_in_words(gap, measure)}{doubt}."


def _not_told_apart(results: StudyResults, best: str, rest: list[str], measure: Measure) -> list[str]:
    """Those of ``rest`` that ``best`` was picked before, and is not ahead of beyond doubt."""
    found = {arm: comparisons.between(results, best, arm, measure.quantity) for arm in rest}
    return [arm for arm, one in found.items() if one is None or one.verdict != "better"]


def _gap_in_words(found: Comparison, measure: Measure) -> str:
    gap, best, other = found.difference, found.arm, found.other
    size = f"{abs(measure.scale * gap.mean):.{measure.digits}f} {measure.unit}"
    place = f"{size} {'better' if found.is_better else 'worse'} than {other}" if gap.mean else f"level with {other}"
    if gap.low is None or gap.high is None:
        return f"{place}, in one seed: no interval can be given, so this is one observation and no evidence"
    if gap.low == gap.high:  # of no width: no evidence (`Estimate.excludes_zero`)
        return f"{place}, the same in {num_seeds(gap.n)}: no variation, so these seeds cannot tell {best} from {other}"
    interval = f"95 % interval of the difference {_ends(gap, measure)}, paired over {num_seeds(gap.n)}"
    if found.num_comparisons > 1:
        of = "primary contrasts" if found.role == "primary" else "contrasts of this report"
        interval += f"; corrected for {found.num_comparisons} {of}: {_ends(found.corrected, measure)}"
    if found.objection:
        why = found.objection.sentence.rstrip(".")
        return f"{place} ({interval}). No verdict is given. {why}"
    beside = f"; {words}" if (words := size_in_words(found)) else ""
    if found.is_decided:
        return f"{place} ({interval}); the interval excludes zero{beside}"
    doubt = f"these seeds cannot tell {best} from {other}{beside}"
    if gap.excludes_zero and found.num_comparisons > 1:
        return f"{place} ({interval}); zero is outside the first and inside the second: {doubt}"
    return f"{place} ({interval}); the interval includes zero: {doubt}"


def _ends(gap: Estimate, measure: Measure) -> str:
    ends = (gap.low, gap.high)
    return " to ".join(units.signed(measure.scale * end, measure.digits) for end in ends if end is not None)
