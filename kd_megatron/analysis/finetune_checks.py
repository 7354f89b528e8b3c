"""Were all students fine-tuned alike? Compares what fine-tunings recorded (docs/fairness.md, clauses 2 and 12).

Those of branches count like those of the last students. What an earlier version did not record is not judged.
"""

from dataclasses import dataclass
from typing import Any

from kd_megatron.analysis.findings import Finding, same, summed_up
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.summaries import FinetuneSummary
from kd_megatron.recipe import FinetuneRecipe, diff
from kd_megatron.recipe.diff import flatten

AUTO = "auto"  # a precision that the machine decided: it is then compared between the students


@dataclass(frozen=True)
class Finetuning:
    """What one student's fine-tuning recorded."""

    arm: str
    name: str  # "minilm/0", of a branch "minilm/0 at 40 %"
    summary: FinetuneSummary
    machines: list[dict[str, Any]]  # one for each start on another machine or commit


def finetune_findings(results: StudyResults) -> list[Finding]:
    """All checks, in the order the report prints them; none where nothing was recorded."""
    found = _finetunings(results)
    sections = {arm: recipe.finetune for arm, recipe in results.resolved.items()}
    findings = _machines(found)
    if all(section == sections[results.reference] for section in sections.values()):  # else the recipe allows it
        findings |= _rows(found)
        if given := {one.name: one.summary.precision for one in found if one.summary.settings is not None}:
            findings["precision"] = same("fine-tuning: precision", given)
    agreeing = summed_up("fine-tuning: rows, versions, hardware and commit", findings, f"all {len(found)} fine-tunings")
    return [*_settings(results, found), *agreeing]


def _finetunings(results: StudyResults) -> list[Finetuning]:
    found = []
    for run in results.all_runs():
        name = f"{run.arm}/{run.seed}"
        if run.finetune:
            found.append(Finetuning(run.arm, name, run.finetune, run.machines))
        for marker in run.branches:
            if marker.finetune:
                where = f"{name} at {100 * marker.fraction:g} %"
                found.append(Finetuning(run.arm, where, marker.finetune, marker.machines))
    return found


def _settings(results: StudyResults, found: list[Finetuning]) -> list[Finding]:
    """Whether every student was fine-tuned as the recipe says of its arm."""
    expected = {
        arm: recipe.finetune.model_dump(mode="json") if recipe.finetune else {}
        for arm, recipe in results.resolved.items()
    }
    recorded = [(one, one.summary.settings) for one in found if one.summary.settings is not None]
    problems = []
    for one, given in recorded:
        wanted = expected[one.arm]
        both = flatten(given).keys() & flatten(wanted).keys()
        for change in diff.changes(FinetuneRecipe, given, wanted, but="scores", among=both):
            if change.now != AUTO:
                problems.append(f"{one.name} had {change.key} {change.was}, not {change.now}")
    detail = "; ".join(problems) or f"in all {len(recorded)} fine-tunings"
    return [Finding("fine-tuning: settings as the recipe says", not problems, detail)] if recorded else []


def _rows(found: list[Finetuning]) -> dict[str, Finding]:
    """Task -> whether all students learned and were scored on the same rows of it."""
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        for task, part in one.summary.tasks.items():
            if part.content_hash is not None:
                rows.setdefault(task, {})[one.name] = part.content_hash
    return {f"rows of {task}": same(f"fine-tuning: rows of {task}", hashes) for task, hashes in rows.items()}


def _machines(found: list[Finetuning]) -> dict[str, Finding]:
    """Entry -> whether all were run with the same; several of one fine-tuning are shown one beside the other."""
    facts = {one.name: [flatten(machine) for machine in one.machines] for one in found if one.machines}
    keys = sorted({key for machines in facts.values() for machine in machines for key in machine})
    values = {
        key: {name: sorted({str(machine.get(key)) for machine in machines}) for name, machines in facts.items()}
        for key in keys
    }
    return {key: same(f"fine-tuning: {key}", recorded) for key, recorded in values.items()}
