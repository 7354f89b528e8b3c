"""Quality on the way: losses and scores of one run at several points of its budget.

Scores on the way are of branches (`study.markers`), fine-tuned like the last student; a run without them has its last
score alone. Losses on the way are of the run as it was validated (`validation.at`), and of its branches.
"""

from dataclasses import dataclass

from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.summaries import FinetuneSummary

PROBE_METRIC = "validation/probe_mlm_loss"


@dataclass(frozen=True)
class CurvePoint:
    """One quality of one run, measured at one moment of it."""

    fraction: float  # of the budget
    tokens: float
    flops: float  # charged
    value: float  # nats, or a score in [0, 1]
    is_decayed: bool  # whether the learning rate had come down: at the end, or in a branch


def loss_readings(results: StudyResults, run: FinishedRun) -> list[CurvePoint]:
    """Held-out loss of the probe, in the order of the budget; of the run and of its branches."""
    constant = results.recipe.training.schedule == "constant"
    rows = [row for row in run.metrics if row.get(PROBE_METRIC) is not None]
    found = {
        row["tokens"]: CurvePoint(
            row["budget_fraction"],
            row["tokens"],
            row["flops"],
            row[PROBE_METRIC],
            constant or row["budget_fraction"] >= 1.0,
        )
        for row in rows
        if all(row.get(key) is not None for key in ("tokens", "flops", "budget_fraction"))
    }
    branches = [
        CurvePoint(marker.fraction, marker.tokens, marker.flops, marker.probe_loss, constant or marker.decayed)
        for marker in run.branches
        if marker.probe_loss is not None
    ]
    return sorted([*found.values(), *branches], key=lambda reading: (reading.tokens, reading.is_decayed))


def score_readings(results: StudyResults, run: FinishedRun, task: str | None = None) -> list[CurvePoint]:
    """Score of ``task`` (None: the average over tasks) at each marker that was fine-tuned, and at the end."""
    found = []
    for marker in run.branches:
        value = _score(marker.finetune, task)
        if value is not None:
            found.append(CurvePoint(marker.fraction, marker.tokens, marker.flops, value, marker.decayed))
    last = _score(run.finetune, task)
    if last is not None:
        found.append(CurvePoint(1.0, run.summary.tokens, run.summary.flops, last, True))
    return sorted(found, key=lambda reading: reading.fraction)


def _score(summary: FinetuneSummary | None, task: str | None) -> float | None:
    if summary is None or (task is not None and task not in summary.tasks):
        return None
    return summary.average if task is None else summary.tasks[task].mean


def readings(results: StudyResults, run: FinishedRun, quantity: str) -> list[CurvePoint]:
    """`loss_readings` for ``"probe_loss"``, else `score_readings`; of branches and the end alone, where there are such.

    The run as it was on the way, its learning rate still high, is no student of a smaller budget.
    """
    found = loss_readings(results, run) if quantity == "probe_loss" else score_readings(results, run)
    settled = [reading for reading in found if reading.is_decayed]
    return settled if run.branches and len(settled) > 1 else found
