"""Whether instruments are fit: what takes a verdict away, of which quantity, and why.

Every verdict of a report asks here. An objection is one reason, as a word for the column of verdicts and as a sentence
for the caveats; the gravest comes first.
"""

from dataclasses import dataclass

from kd_megatron.analysis.measure import OWN_HEAD, PROBE
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks

FIT_GAP = 0.05  # nats between the probe and an own head, beyond which the probe is no measure of what students know

UNFAIR = "unfair"


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
