"""Rows below the arms: the untrained student, the teacher, and the majority class of each task. None is compared."""

import math
from typing import Any

from kd_megatron.analysis.controls import Control
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.recipe.controls import TEACHER

LABEL = "(control)"
MAJORITY = "majority class"


def score_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Rows of the table of scores: what each control measured, and what guessing scores."""
    found = [_measured(results, control) for control in results.controls.values() if control.summary]
    return [*found, *_majority(results)]


def own_head_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Rows of the table of own heads: controls whose head was measured."""
    return [
        {
            "arm": _label(control.title),
            "own_loss": _one(control.summary.own_loss),
            "gap": _one(_gap(control)),
        }
        for control in results.controls.values()
        if control.summary and control.summary.own_loss is not None
    ]


def remarks(results: StudyResults) -> str:
    """What the rows are, and which are missing, for the note of the table; empty where a study has none."""
    shown = [control.name for control in results.controls.values() if control.summary]
    said = []
    if shown:
        tuned = " fine-tuned with one seed" if results.tasks and TEACHER in shown else ""
        said.append(
            f"Rows {LABEL} are compared with no arm: the study's first weights without a training step"
            + (f", and its teacher{tuned}." if TEACHER in shown else ".")
        )
    if missing := results.missing_controls:
        said.append(f"Control rows are missing: {', '.join(missing)}.")
    return " ".join(said)


def caveats(results: StudyResults) -> list[str]:
    """That a reader has no such rows to hold the arms against, and why."""
    said = []
    if missing := results.missing_controls:
        listed = ", ".join(missing)
        said.append(
            f"Control rows are missing ({listed}): the same command measures them and leaves the rest as it is."
        )
    off = [] if results.recipe.controls.untrained else ["the untrained student"]
    if results.recipe.teacher is not None and not results.recipe.controls.teacher:
        off.append("the teacher")
    return said + ([f"The recipe switches control rows off: {', '.join(off)}."] if off else [])


def _measured(results: StudyResults, control: Control) -> dict[str, Any]:
    assert control.summary is not None
    row: dict[str, Any] = {"arm": _label(control.title), "seeds": 1}
    if results.tasks:
        row["score"] = _one(control.score(results.averaged_tasks))
    row["probe_loss"] = _one(control.summary.probe_loss)
    return row | {f"score_{task}": _one(control.task_score(task)) for task in results.tasks}


def _majority(results: StudyResults) -> list[dict[str, Any]]:
    """What guessing scores, where it was recorded."""
    if not results.judged:
        return []
    scores = {one.task: one.majority_score for one in results.judged}
    averaged = [scores[task] for task in results.averaged_tasks]
    row = {"score": _one(math.fsum(averaged) / len(averaged) if averaged else None)}
    row |= {f"score_{task}": _one(score) for task, score in scores.items()}
    return [{"arm": _label(MAJORITY), "seeds": None, **row}]


def _gap(control: Control) -> float | None:
    summary = control.summary
    if summary is None or summary.own_loss is None or summary.probe_loss is None:
        return None
    return summary.probe_loss - summary.own_loss


def _label(title: str) -> str:
    return f"{title} {LABEL}"


def _one(value: float | None) -> Estimate | None:
    """A single measurement, which has no interval."""
    return None if value is None else Estimate(1, value)
