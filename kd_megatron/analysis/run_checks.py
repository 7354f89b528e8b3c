"""Were the runs as comparable as the recipe promised? Compares what they recorded (docs/fairness.md, clause 2).

Nothing is refused here: the money is spent. Every difference becomes a finding that the report prints.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kd_megatron.analysis.findings import Finding, same, short, summed_up
from kd_megatron.analysis.finetune_checks import finetune_findings
from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.recipe import StudyRecipe, diff
from kd_megatron.recipe.config import TIME_UNITS
from kd_megatron.recipe.diff import flatten

OWN_TO_A_RUN = ("arm", "seed", "recipe", "command", "argv", "time", "date", "started", "finished", "pid", "directory")
SEEDS = "seeds"
CLOCK_TOLERANCE = 0.01  # of the budget: one step of a wall-clock budget may be slower than the mean step
OF_THE_TEACHER = ("teacher", "teacher_source")  # entries of a fingerprint: of arms that have something of the teacher
OF_A_CHECKPOINT = ("begins_from",)  # of arms that begin from a model other than the teacher
EPSILON_SHARE, CLIPPED_SHARE = "epsilon_share", "clipped_share"  # columns of a run's metrics
MOST_OF_EPSILON = 0.10  # of an arm's updates
LARGEST_FACTOR = 2.0  # between what clipping leaves of the gradients of two arms


@once
def run_findings(results: StudyResults) -> list[Finding]:
    """All checks, in the order the report prints them; empty when nothing has finished yet."""
    runs = results.all_runs()
    if not runs:
        return []
    return [
        _same(runs, "budget unit, limit and charged accounts", _budget(results)),
        _budgets_are_spent(runs),
        _same_seeds(results),
        _same(runs, "student parameters", lambda run: run.summary.parameters),
        *_settings(results),
        *_update_findings(results),
        *_fingerprints(results),
        *finetune_findings(results),
    ]


@once
def unfair_checks(results: StudyResults) -> list[str]:
    """The checks in which arms with the same seed differ: such results name no winner.

    A seed that an arm lacks is no such check, for arms are compared over the seeds they share; neither is what differs
    between seeds alone, such as the commit of seeds added later, for differences pair arms seed by seed.
    """
    found: dict[str, None] = {}
    for seed in results.recipe.seeds:
        of_seed = {arm: {seed: runs[seed]} if seed in runs else {} for arm, runs in results.runs.items()}
        findings = run_findings(replace(results, runs=of_seed))
        found |= dict.fromkeys(one.check for one in findings if not one.passed and one.check != SEEDS)
    return list(found)


def _budget(results: StudyResults) -> Callable[[FinishedRun], dict[str, Any]]:
    """What a run was given, with what its arm's tuning was charged before it."""
    charged: dict[str, float] = (results.tuning or {}).get("charged") or {}

    def given(run: FinishedRun) -> dict[str, Any]:
        budget = run.summary.budget
        whole = budget.limit + charged.get(run.arm, 0.0)
        return {"unit": budget.unit, "limit": whole, "charge": budget.charge}

    return given


def _settings(results: StudyResults) -> list[Finding]:
    """Whether every run was given what the recipe says of its arm; nothing of runs that did not record it."""
    problems, num_runs = [], 0
    for arm in results.arms:
        expected, owes = results.resolved[arm], results.owes_the_teacher(arm)
        for run in results.runs[arm].values():
            given = run.summary.settings or {}  # none of runs before there was such a record
            num_runs += run.summary.settings is not None
            for one in diff.changes(StudyRecipe, given, expected, but="record", among=given and flatten(given)):
                if owes or not one.policy.makes_stale("taught"):
                    problems.append(f"{run.name} had {one.key} {one.was}, not {one.now}")
    if problems:
        return [Finding("settings as the recipe says", False, "; ".join(problems))]
    return [Finding("settings as the recipe says", True, f"in all {num_runs} runs")] if num_runs else []


def _same(runs: list[FinishedRun], check: str, read: Callable[[FinishedRun], Any]) -> Finding:
    return same(check, {run.name: read(run) for run in runs})


def _budgets_are_spent(runs: list[FinishedRun]) -> Finding:
    """Each run spent its limit, and at most one step more; a calibrated one took exactly its steps."""
    problems, worst = [], 0.0
    for run in runs:
        budget, steps = run.summary.budget, max(run.summary.steps, 1)
        if budget.calibrated_steps is not None:
            if steps != budget.calibrated_steps:
                problems.append(f"{run.name} took {steps} of the {budget.calibrated_steps} steps fixed for it")
            continue
        allowance = budget.spent / steps
        if budget.unit in TIME_UNITS:
            allowance = max(allowance, CLOCK_TOLERANCE * budget.limit)
        excess = budget.spent - budget.limit
        worst = max(worst, excess / budget.limit)
        if not -1e-9 * budget.limit <= excess <= allowance * (1 + 1e-9):
            spent = f"{budget.spent:.4g} of {budget.limit:.4g} {budget.unit}"
            problems.append(f"{run.name} spent {spent}")
    if problems:
        return Finding("equal budgets", False, "; ".join(problems))
    if all(run.summary.budget.calibrated_steps is not None for run in runs):
        return Finding("equal budgets", True, "all took the steps that calibration fixed before training")
    return Finding("equal budgets", True, f"all within one step; largest overshoot {100 * worst:.2g} % of the budget")


def _same_seeds(results: StudyResults) -> Finding:
    seeds = {arm: sorted(runs) for arm, runs in results.runs.items()}
    if len({tuple(found) for found in seeds.values()}) == 1:
        return Finding(SEEDS, True, f"every arm has seeds {', '.join(map(str, next(iter(seeds.values()))))}")
    listed = "; ".join(f"{arm}: {', '.join(map(str, found)) or 'none yet'}" for arm, found in seeds.items())
    return Finding(SEEDS, False, f"arms do not have the same seeds, differences pair the shared ones. {listed}")


def _update_findings(results: StudyResults) -> list[Finding]:
    """Was an arm muted? One finding for Adam's epsilon and one for clipping; none of runs that recorded neither.

    Arms have losses of different sizes. An epsilon beside the gradients of one of them slows that arm alone, and so
    does a clipping norm that only some arms reach: both make arms differ in more than the objective.
    """
    epsilon, clipped = (_by_arm(results, column) for column in (EPSILON_SHARE, CLIPPED_SHARE))
    found = []
    if epsilon:
        passed = max(epsilon.values()) <= MOST_OF_EPSILON
        found.append(Finding("share of updates that Adam's epsilon took", passed, _listed(epsilon)))
    if clipped:
        left = [1.0 - share for share in clipped.values()]
        passed = max(left) <= LARGEST_FACTOR * min(left)
        found.append(Finding("share of gradients that clipping took", passed, _listed(clipped)))
    return found


def _by_arm(results: StudyResults, column: str) -> dict[str, float]:
    """Arm -> the mean of a column over all rows of all its runs; arms without such rows are left out."""
    found = {}
    for arm in results.arms:
        rows = [row for run in results.runs[arm].values() for row in run.metrics]
        if values := [row[column] for row in rows if row.get(column) is not None]:
            found[arm] = sum(values) / len(values)
    return found


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{arm} {100 * share:.2g} %" for arm, share in shares.items())


def _fingerprints(results: StudyResults) -> list[Finding]:
    """One finding for all fingerprint entries that agree, one for each that does not."""
    runs = results.all_runs()
    findings = {key: same(f"fingerprint: {key}", values) for key, values in _recorded(results).items()}
    return summed_up("data, versions, hardware and commit", findings, f"all {len(runs)} runs")


@once
def fingerprint_differences(results: StudyResults) -> dict[str, dict[str, Any]]:
    """Entry -> run (``ARM/SEED``) -> value, of what runs recorded otherwise than most of them did."""
    found = {}
    for key, recorded in _recorded(results).items():
        values = {name: short(value) for name, value in recorded.items()}
        usual = max(values.values(), key=list(values.values()).count)
        if others := {name: value for name, value in values.items() if value != usual}:
            found[key] = others
    return found


def differences_between(studies: Mapping[str, StudyResults]) -> dict[str, str]:
    """Entry -> in words, which of several studies recorded what, such as the cells of a grid; those that differ."""
    recorded = {name: _recorded(study) for name, study in studies.items()}
    said = {}
    for key in sorted({key for entries in recorded.values() for key in entries}):
        counts: dict[str, Counter[str]] = {}
        for name, entries in recorded.items():
            for value in entries.get(key, {}).values():
                counts.setdefault(short(value), Counter())[name] += 1
        if len(counts) > 1:
            where = ((value, ", ".join(f"{n} of {name}" for name, n in counts[value].items())) for value in counts)
            said[key] = "; ".join(f"{value} in {names}" for value, names in where)
    return said


@once
def _recorded(results: StudyResults) -> dict[str, dict[str, Any]]:
    """Entry of the fingerprints -> `Student.name` -> what it recorded, of those in which the entry counts.

    An arm that owes the teacher nothing is the same with another one: `claim_study` lets it stand, and so does this.
    """
    prints = [(one, flatten(one.summary.fingerprint or {"fingerprint": "absent"})) for one in results.all_students()]
    taught = {arm for arm in results.arms if results.owes_the_teacher(arm)}
    begun = {arm for arm in results.arms if results.resolved[arm].student.initialise.method == "checkpoint"}
    own_to = dict.fromkeys(OF_THE_TEACHER, taught) | dict.fromkeys(OF_A_CHECKPOINT, begun)
    found = {}
    for key in sorted({key for _, one in prints for key in one if _comparable(key)}):
        counting = own_to.get(key, {*results.arms})
        found[key] = {student.name: one.get(key) for student, one in prints if student.arm in counting}
    return {key: values for key, values in found.items() if values}


def _comparable(key: str) -> bool:
    parts = key.replace("_", ".").split(".")
    return not any(word in parts for word in OWN_TO_A_RUN)
