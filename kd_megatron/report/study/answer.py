"""The answer in one sentence, no stronger than the seeds allow."""

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.comparisons import Comparison
from kd_megatron.analysis.fitness import objections
from kd_megatron.analysis.measure import Measure, measure_of, ranking
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units
from kd_megatron.console.units import budget_in_words, counted, num_seeds


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
    gap = comparisons.against_reference(results, best, other, measure.quantity)
    if gap is None:
        return f"{opening}; {other} shares no seed with it, so no difference can be given."
    others = _others(results, best, other, measure) if gap.verdict in comparisons.DECIDED else ""
    return f"{opening}, {_gap_in_words(gap, measure)}{others}."


def _others(results: StudyResults, best: str, other: str, measure: Measure) -> str:
    """What is said of the other arms: those that the reference is not ahead of, or that nothing is judged of them."""
    rest = [arm for arm in results.arms if arm not in (best, other)]
    if best != results.reference:
        return f"; arms are judged against {other} alone, {best} not against {' or '.join(rest)}" if rest else ""
    compared = {one.arm: one.verdict for one in comparisons.overall(results, measure.quantity)}
    near = [arm for arm in rest if compared.get(arm) != "worse"]
    return f"; these seeds cannot tell {best} from {' or '.join(near)}" if near else ""


def _gap_in_words(found: Comparison, measure: Measure) -> str:
    gap, best, other = found.difference, found.arm, found.other
    size = f"{abs(measure.scale * gap.mean):.{measure.digits}f} {measure.unit}"
    place = f"{size} {'better' if found.is_better else 'worse'} than {other}" if gap.mean else f"level with {other}"
    if gap.low is None or gap.high is None:
        return f"{place}, in one seed: no interval can be given, so this is one observation and no evidence"
    if gap.low == gap.high:  # of no width: no evidence (`Estimate.excludes_zero`)
        return f"{place}, the same in {num_seeds(gap.n)}: no variation, so these seeds cannot tell {best} from {other}"
    interval = f"95 % interval of the difference {_ends(gap, measure)}, paired over {num_seeds(gap.n)}"
    if not gap.excludes_zero:
        return f"{place} ({interval}); the interval includes zero: these seeds cannot tell {best} from {other}"
    corrected = f"corrected for {counted(found.num_comparisons, 'contrast')}: {_ends(found.corrected, measure)}"
    if found.objection:
        return f"{place} ({interval}; {corrected}); no verdict: {found.objection}"
    if found.corrected.excludes_zero:
        return f"{place} ({interval}; {corrected}); the interval excludes zero"
    doubt = f"zero is outside the first and inside the second: these seeds cannot tell {best} from {other}"
    return f"{place} ({interval}; {corrected}); {doubt}"


def _ends(gap: Estimate, measure: Measure) -> str:
    ends = (gap.low, gap.high)
    return " to ".join(units.signed(measure.scale * end, measure.digits) for end in ends if end is not None)
