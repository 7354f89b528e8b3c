"""How the probes were trained: whether each converged, after how much, and what it reads where the top is untrained."""

from statistics import fmean
from typing import Any

from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.statistics import estimate
from kd_megatron.console import units
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, numbers, texts

NOTE = (
    "A probe begins at the MLM head of the study's first weights and is trained on the frozen student until another "
    "pass over its windows no longer lowers the loss on a slice of others (docs/fairness.md, clause 8). Where an "
    "objective never trains the top layers, the student is probed at the highest trained layer too; all other losses "
    "of the probe in this report are at the top."
)


def table(study: StudyResults) -> Table | None:
    """A row for each arm whose runs recorded how their probes were trained; None without any."""
    rows = [row for arm in study.arms if (row := _row(study, arm, [*study.runs[arm].values()]))]
    if not rows:
        return None
    columns = [
        *texts("arm", converged="converged"),
        *numbers(units.count, steps="steps", passes="passes"),
        *numbers(units.thousandths, begins="slice, at first", ends="slice, at the end"),
        Column("layer", "highest trained layer"),
        Column("tap_loss", "held-out MLM loss there (probe)", words.loss),
        Column("probe_loss", "at the top", words.loss),
    ]
    return Table("probes", "How the probes were trained", columns, rows, NOTE)


def _row(study: StudyResults, arm: str, runs: list[FinishedRun]) -> dict[str, Any] | None:
    probes = [run.summary.probe for run in runs if run.summary.probe]
    if not probes:
        return None
    taps = [probe.tap_loss for probe in probes if probe.tap_loss is not None]
    return {
        "arm": arm,
        "converged": f"{sum(probe.converged for probe in probes)} of {len(probes)}",
        "steps": fmean([probe.steps for probe in probes]),
        "passes": fmean([len(probe.curve) - 1 for probe in probes]),
        "begins": fmean([probe.curve[0] for probe in probes]),
        "ends": fmean([min(probe.curve) for probe in probes]),
        "layer": probes[0].tap_layer,
        "tap_loss": estimate(taps, method=study.interval),
        "probe_loss": study.mean(arm, "probe_loss"),
    }
