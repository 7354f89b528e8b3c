"""Quality on the way: losses and scores of one run at several points of its budget.

Scores on the way are of branches (`study.students`), fine-tuned like the last student; a run without them has its last
score alone. Losses on the way are of the run as it was validated (`validation.at`), and of its branches.
"""

from dataclasses import dataclass

from kd_megatron.analysis.results import FinishedRun, Student, StudyResults

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
        _point(branch, branch.probe_loss, constant or branch.decayed)
        for branch in run.branches
        if branch.probe_loss is not None
    ]
    return sorted([*found.values(), *branches], key=lambda reading: (reading.tokens, reading.is_decayed))


def score_readings(run: FinishedRun, task: str | None = None) -> list[CurvePoint]:
    """Score of ``task`` (None: the average over tasks) at each marker that was fine-tuned, and at the end."""
    scored = ((one, one.task_score(task) if task else one.score) for one in (*run.branches, run))
    return [_point(student, value, student.decayed) for student, value in scored if value is not None]


def _point(student: Student, value: float, is_decayed: bool) -> CurvePoint:
    return CurvePoint(student.fraction, student.summary.tokens, student.summary.flops, value, is_decayed)


def readings(results: StudyResults, run: FinishedRun, quantity: str) -> list[CurvePoint]:
    """`loss_readings` for ``"probe_loss"``, else `score_readings`; of branches and the end alone, where there are such.

    The run as it was on the way, its learning rate still high, is no student of a smaller budget.
    """
    found = loss_readings(results, run) if quantity == "probe_loss" else score_readings(run)
    settled = [reading for reading in found if reading.is_decayed]
    return settled if run.branches and len(settled) > 1 else found
