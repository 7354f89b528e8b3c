"""Quality on the way: losses and scores of one run at several points of its budget.

Scores on the way come from exports at fractions of the budget, fine-tuned like the last one. A run lists them in its
summary as ``markers: [{fraction, tokens, flops, spent, decayed}]``; their fine-tuning is in `marker_directory`. A run
without them has its last score alone. ``decayed``: whether its learning rate was brought down from there (a branch).
"""

from dataclasses import dataclass
from pathlib import Path

from kd_megatron.study.results import Run, StudyResults, finetune_directory, read_summary

PROBE_METRIC = "validation/probe_mlm_loss"


@dataclass(frozen=True)
class Reading:
    """One quality of one run, measured at one moment of it."""

    fraction: float  # of the budget
    tokens: float
    flops: float  # charged
    value: float  # nats, or a score in [0, 1]
    is_decayed: bool  # whether the learning rate had come down: at the end, or in a branch


def marker_directory(study: Path, arm: str, seed: int, fraction: float) -> Path:
    """Where a student is fine-tuned as it was at ``fraction`` of its budget."""
    return finetune_directory(study, arm, seed) / "markers" / f"{fraction:g}"


def loss_readings(results: StudyResults, run: Run) -> list[Reading]:
    """Held-out loss of the probe, in the order of the budget."""
    constant = results.recipe.training.schedule == "constant"
    rows = [row for row in run.metrics if row.get(PROBE_METRIC) is not None]
    found = {
        row["tokens"]: Reading(
            row["budget_fraction"],
            row["tokens"],
            row["flops"],
            row[PROBE_METRIC],
            constant or row["budget_fraction"] >= 1.0,
        )
        for row in rows
        if all(row.get(key) is not None for key in ("tokens", "flops", "budget_fraction"))
    }
    return [found[tokens] for tokens in sorted(found)]


def score_readings(results: StudyResults, run: Run, task: str | None = None) -> list[Reading]:
    """Score of ``task`` (None: the average over tasks) at each marker that was fine-tuned, and at the end."""
    found = []
    for marker in run.summary.get("markers") or []:
        if marker["fraction"] < 1.0:
            summary = read_summary(marker_directory(results.directory, run.arm, run.seed, marker["fraction"]))
            value = _score(summary, task)
            if value is not None:
                at = (marker["fraction"], marker["tokens"], marker["flops"])
                found.append(Reading(*at, value, bool(marker.get("decayed", False))))
    last = _score(run.finetune, task)
    if last is not None:
        found.append(Reading(1.0, run.summary["tokens"], run.summary["flops"], last, True))
    return sorted(found, key=lambda reading: reading.fraction)


def _score(summary: dict[str, object] | None, task: str | None) -> float | None:
    if not summary:
        return None
    if task is None:
        return summary["average"]  # type: ignore[return-value]
    tasks = summary["tasks"]
    return tasks[task]["mean"] if isinstance(tasks, dict) and task in tasks else None


def readings(results: StudyResults, run: Run, quantity: str, task: str | None = None) -> list[Reading]:
    """`loss_readings` for ``"probe_loss"``, else `score_readings`."""
    return loss_readings(results, run) if quantity == "probe_loss" else score_readings(results, run, task)
