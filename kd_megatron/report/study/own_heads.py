"""What students reach by their own MLM heads, where their objective trains one, and how far the probe is from that."""

from matplotlib.figure import Figure

from kd_megatron.analysis import comparisons
from kd_megatron.analysis.fitness import probe_gaps
from kd_megatron.analysis.measure import OWN_HEAD
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import estimate
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, numbers
from kd_megatron.report.study import figures
from kd_megatron.report.study.certainty_tables import size_columns, size_in_words

NOTE = (
    "Each student by the masked-language-model head that its objective trained, on the same held-out windows as the "
    "probe. Lower is better, in nats. Arms without a trained head have no such loss. Differences are paired by seed; "
    "corrected intervals and verdicts are of the report's family, as in the table of differences; the probe's gap is "
    "its loss minus that of the own head."
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
            "role": compared[arm].role if arm in compared else None,
            "corrected": words.ends(compared[arm].corrected, 1, 3) if arm in compared else None,
            "comparisons": compared[arm].num_comparisons if arm in compared else None,
            "verdict": compared[arm].verdict if arm in compared else None,
            "size": size_in_words(compared[arm]) if arm in compared else None,
            "gap": estimate(list(probe_gaps(study, arm).values()), method=study.interval),
        }
        for arm in arms
    ]
    columns = [
        Column("arm", "arm", is_text=True),
        Column("seeds", "seeds"),
        Column("own_loss", "held-out MLM loss (own head)", words.loss),
        Column("difference", f"difference to {study.reference} [95 %]", words.loss_difference),
        Column("role", "contrast", units.plain, is_text=True),
        *numbers(corrected="corrected interval", comparisons="corrected for"),
        Column("verdict", "verdict", units.plain, is_text=True),
        *size_columns(list(compared.values())),
        Column("gap", "the probe's gap", words.loss),
    ]
    return Table("own_heads", "By the students' own heads", columns, rows, NOTE)


def own_heads(study: StudyResults) -> Figure | None:
    """Loss per arm by own heads: seeds as points, mean and 95 % interval beside them."""
    return figures.dots(study, OWN_HEAD)
