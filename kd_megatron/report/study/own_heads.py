"""What students reach by their own MLM heads, where their objective trains one, and how far the probe is from that."""

from matplotlib.figure import Figure

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.measure import OWN_HEAD
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import estimate
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, numbers
from kd_megatron.report.study import figures

FIT_GAP = 0.05  # nats between the probe and an own head, beyond which the probe is no measure of what students know
NOTE = (
    "Each student by the masked-language-model head that its objective trained, on the same held-out windows as the "
    "probe. Lower is better, in nats. Arms without a trained head have no such loss. Differences are paired by seed; "
    "corrected intervals hold together over the arms; the probe's gap is its loss minus that of the own head."
)


def table(study: StudyResults) -> Table | None:
    """A row for each arm with a trained head; None where no arm has one."""
    arms = [arm for arm in study.arms if study.by_seed(arm, OWN_HEAD.quantity)]
    if not arms:
        return None
    compared = {one.arm: one for one in comparisons.overall(study, OWN_HEAD.quantity)}
    rows = [
        {
            "arm": arm,
            "seeds": len(study.by_seed(arm, OWN_HEAD.quantity)),
            "own_loss": study.mean(arm, OWN_HEAD.quantity),
            "difference": compared[arm].difference if arm in compared else None,
            "corrected": words.ends(compared[arm].corrected, 1, 3) if arm in compared else None,
            "verdict": compared[arm].verdict if arm in compared else None,
            "gap": estimate(list(gaps(study, arm).values()), method=study.interval),
        }
        for arm in arms
    ]
    columns = [
        Column("arm", "arm", is_text=True),
        Column("seeds", "seeds"),
        Column("own_loss", "held-out MLM loss (own head)", words.loss),
        Column("difference", f"difference to {study.reference} [95 %]", words.loss_difference),
        *numbers(corrected="corrected interval"),
        Column("verdict", "verdict", units.plain, is_text=True),
        Column("gap", "the probe's gap", words.loss),
    ]
    return Table("own_heads", "By the students' own heads", columns, rows, NOTE)


def gaps(study: StudyResults, arm: str) -> dict[int, float]:
    """Seed -> the probe's loss minus that of the own head, in nats."""
    own, probe = study.by_seed(arm, OWN_HEAD.quantity), study.by_seed(arm, "probe_loss")
    return {seed: probe[seed] - own[seed] for seed in own.keys() & probe.keys()}


def caveats(study: StudyResults) -> list[str]:
    """That the probe has not converged, where own heads show it."""
    found = [gap for arm in study.arms for gap in gaps(study, arm).values()]
    if not found or max(found) <= FIT_GAP:
        return []
    least, most = min(found), max(found)
    return [
        f"The probe has not converged: where students have trained heads, its loss is {least:.2f} to {most:.2f} nats "
        f"above theirs (at most {FIT_GAP:g} would be fit). Differences by the probe understate what arms learned, and "
        "their order may change with more steps of it; the table of own heads stands next to it."
    ]


def own_heads(study: StudyResults) -> Figure | None:
    """Loss per arm by own heads: seeds as points, mean and 95 % interval beside them."""
    return figures.dots(study, OWN_HEAD)
