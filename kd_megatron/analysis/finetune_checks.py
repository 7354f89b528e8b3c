"""Were all students fine-tuned alike? Compares what fine-tunings recorded (docs/fairness.md, clauses 2 and 12).

Those of branches count like those of the last students. What an earlier version did not record is not judged.
"""

from kd_megatron.analysis.findings import Finding, same, summed_up
from kd_megatron.analysis.results import Student, StudyResults
from kd_megatron.analysis.summaries import FinetuneSummary
from kd_megatron.recipe import FinetuneRecipe, diff
from kd_megatron.recipe.diff import flatten

AUTO = "auto"  # a precision that the machine decided: it is then compared between the students

Finetunings = list[tuple[Student, FinetuneSummary]]


def finetune_findings(results: StudyResults) -> list[Finding]:
    """All checks, in the order the report prints them; none where nothing was recorded."""
    found = [(one, one.finetune) for one in results.all_students() if one.finetune]
    sections = {arm: recipe.finetune for arm, recipe in results.resolved.items()}
    findings = _machines([one for one, _ in found])
    if all(section == sections[results.reference] for section in sections.values()):  # else the recipe allows it
        findings |= _rows(found)
        if given := {one.name: part.precision for one, part in found if part.settings is not None}:
            findings["precision"] = same("fine-tuning: precision", given)
    agreeing = summed_up("fine-tuning: rows, versions, hardware and commit", findings, f"all {len(found)} fine-tunings")
    return [*_settings(results, found), *agreeing]


def _settings(results: StudyResults, found: Finetunings) -> list[Finding]:
    """Whether every student was fine-tuned as the recipe says of its arm."""
    expected = {
        arm: recipe.finetune.model_dump(mode="json") if recipe.finetune else {}
        for arm, recipe in results.resolved.items()
    }
    recorded = [(one, part.settings) for one, part in found if part.settings is not None]
    problems = []
    for one, given in recorded:
        wanted = expected[one.arm]
        both = flatten(given).keys() & flatten(wanted).keys()
        for change in diff.changes(FinetuneRecipe, given, wanted, but="scores", among=both):
            if change.now != AUTO:
                problems.append(f"{one.name} had {change.key} {change.was}, not {change.now}")
    detail = "; ".join(problems) or f"in all {len(recorded)} fine-tunings"
    return [Finding("fine-tuning: settings as the recipe says", not problems, detail)] if recorded else []


def _rows(found: Finetunings) -> dict[str, Finding]:
    """Task -> whether all students learned and were scored on the same rows of it."""
    rows: dict[str, dict[str, str]] = {}
    for one, summary in found:
        for task, part in summary.tasks.items():
            if part.content_hash is not None:
                rows.setdefault(task, {})[one.name] = part.content_hash
    return {f"rows of {task}": same(f"fine-tuning: rows of {task}", hashes) for task, hashes in rows.items()}


def _machines(found: list[Student]) -> dict[str, Finding]:
    """Entry -> whether all were run with the same; several of one fine-tuning are shown one beside the other."""
    facts = {one.name: [flatten(machine) for machine in one.machines] for one in found if one.machines}
    keys = sorted({key for machines in facts.values() for machine in machines for key in machine})
    values = {
        key: {name: sorted({str(machine.get(key)) for machine in machines}) for name, machines in facts.items()}
        for key in keys
    }
    return {key: same(f"fine-tuning: {key}", recorded) for key, recorded in values.items()}
