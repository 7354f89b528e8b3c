"""Whether instruments are fit: what takes a verdict away, of which quantity, and why.

Every verdict of a report asks here. An objection is one reason, as a word for the column of verdicts and as a sentence
for the caveats; the gravest comes first.
"""

from dataclasses import dataclass

from kd_megatron.analysis.measure import OWN_HEAD, PROBE
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.study.power import ENOUGH, VERDICT_EFFECT, fewest_students, power

FIT_GAP = 0.05  # nats between the probe and an own head, beyond which the probe is no measure of what students know

UNFAIR = "unfair"
TOO_FEW = "too few students"


@dataclass(frozen=True)
class Objection:
    """One reason for which nothing is claimed of a quantity."""

    word: str  # of the column of verdicts, such as "unfair"
    sentence: str  # of the caveats


@once
def objections(results: StudyResults, quantity: str, task: str | None = None) -> list[Objection]:
    """Why nothing may be claimed of a quantity (`StudyResults.by_seed`); empty where its instruments are fit."""
    found = _unfair(results)
    if quantity == PROBE.quantity:
        found += _probe_is_unfit(results)
    return found


def objection(results: StudyResults, quantity: str, task: str | None = None) -> str | None:
    """The word of the gravest objection; None where there is none."""
    return next((one.word for one in objections(results, quantity, task)), None)


def too_few_students(num_students: int, num_contrasts: int, promised: int | None) -> list[Objection]:
    """That so many students cannot carry a verdict; empty where they can, and of one seed, which is no evidence anyway.

    Args:
        num_students: pairs of them, one for each pretraining seed.
        num_contrasts: of the family that is corrected for.
        promised: the number that the recipe fixed before the first step (`protocol.students`); None: power decides.
    """
    needed = fewest_students(num_contrasts) if promised is None else promised
    if num_students < 2 or num_students >= needed:
        return []
    why = (
        f"a verdict needs {_whole(ENOUGH)}, so {needed} students" if promised is None else f"the protocol says {needed}"
    )
    found = _whole(power(VERDICT_EFFECT, num_students, num_contrasts))
    sentence = (
        f"Too few students for a verdict: of each arm {num_students} are compared, which find a difference of "
        f"{VERDICT_EFFECT:g} standard deviations with a chance of {found} where intervals are corrected for "
        f"{num_contrasts}; {why}."
    )
    return [Objection(TOO_FEW, sentence)]


def _whole(chance: float) -> str:
    return f"{100 * chance:.0f} %"


def power_in_words(what: str, num_students: int, num_contrasts: int, promised: int | None) -> str:
    """What so many students can find; ``what``: of the family, such as "primary contrasts"."""
    found = _whole(power(VERDICT_EFFECT, num_students, num_contrasts))
    fixed = (
        f"the protocol fixed {promised}" if promised else f"{fewest_students(num_contrasts)} are enough for verdicts"
    )
    return (
        f"Power: {num_students} students of each arm find a difference of {VERDICT_EFFECT:g} standard deviations with "
        f"a chance of {found} (exact, paired t-test) where intervals are corrected for {num_contrasts} {what}; {fixed}."
    )


def _unfair(results: StudyResults) -> list[Objection]:
    if checks := unfair_checks(results):
        return [Objection(UNFAIR, f"Arms with the same seed differ in more than their objective ({checks[0]}).")]
    return []


@once
def probe_gaps(results: StudyResults, arm: str) -> dict[int, float]:
    """Seed -> the probe's loss minus that of the own head, in nats; of an arm that trains a head."""
    own, probe = results.by_seed(arm, OWN_HEAD.quantity), results.by_seed(arm, PROBE.quantity)
    return {seed: probe[seed] - own[seed] for seed in sorted(own.keys() & probe.keys())}


def _probe_is_unfit(results: StudyResults) -> list[Objection]:
    """That the probe reads more than students know, where own heads show it."""
    found = [gap for arm in results.arms for gap in probe_gaps(results, arm).values()]
    if not found or max(found) <= FIT_GAP:
        return []
    sentence = (
        f"The probe is unfit: where students have trained heads, its loss is {min(found):.2f} to {max(found):.2f} nats "
        f"above theirs (at most {FIT_GAP:g} would be fit). It gives no verdict; the table of own heads stands next to "
        "it."
    )
    return [Objection("probe unfit", sentence)]
