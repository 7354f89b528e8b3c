"""A study's directory, read back: which pieces there are, and what each one found.

    studies/NAME/  study.yaml  teacher/  arms/ARM/seed_K/  finetune/ARM/seed_K/  report/

Only ``summary.json`` with ``"status": "finished"`` counts as a result; anything else is a piece still missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kd_megatron.analysis import inclusion, summaries
from kd_megatron.analysis.controls import Control, load_control
from kd_megatron.analysis.inclusion import JudgedTask
from kd_megatron.analysis.once import once
from kd_megatron.analysis.statistics import Estimate, Method, estimate, paired_difference
from kd_megatron.analysis.summaries import FinetuneSummary, RunSummary, TaskSummary
from kd_megatron.files import records
from kd_megatron.objectives import of_the_teacher
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.recipe.arms import resolve_arm
from kd_megatron.study.effective import CALIBRATION_FILE, TUNING_FILE, read, with_compile, with_tuning
from kd_megatron.study.journal import journal, registered
from kd_megatron.study.layout import (
    RECIPE_FILE,
    arm_directory,
    branch_directory,
    branch_finetune_directory,
    finetune_directory,
    no_study,
    reference_of,
    teacher_directory,
)


@dataclass(frozen=True)
class Student:
    """An arm with one seed: at the end of its run, or of a branch that left it, which is what a smaller budget buys."""

    arm: str
    seed: int
    fraction: float  # of the budget; 1.0: a whole run
    summary: RunSummary
    finetune: FinetuneSummary | None
    machines: list[dict[str, Any]]  # that it was fine-tuned on
    averaged: Sequence[str] | None  # tasks that its score is the average of; None: all that it was fine-tuned on

    @property
    def name(self) -> str:
        """``"minilm/0"``, of a branch ``"minilm/0 at 40 %"``."""
        return f"{self.arm}/{self.seed}" + ("" if self.fraction == 1.0 else f" at {100 * self.fraction:g} %")

    @property
    def decayed(self) -> bool:
        """Whether its learning rate came down."""
        return self.fraction == 1.0 or (self.summary.branch is not None and self.summary.branch.decayed)

    @property
    def decay_tokens(self) -> int:
        """Tokens that a branch saw after it had left."""
        steps = self.summary.branch.decay_steps if self.summary.branch else 0
        return round(self.summary.tokens * steps / max(self.summary.steps, 1))

    @property
    def probe_loss(self) -> float | None:
        """Held-out MLM loss of the probe head, in nats per masked token."""
        return self.summary.probe_loss

    @property
    def tasks(self) -> dict[str, TaskSummary]:
        """What fine-tuning found, by task; empty before it."""
        return self.finetune.tasks if self.finetune else {}

    @property
    def score(self) -> float | None:
        """Average over the tasks that are averaged, in [0, 1]; None before fine-tuning, or without such a task."""
        return inclusion.average_of(self.finetune, self.averaged)

    def task_score(self, task: str) -> float | None:
        """Score of one task (mean over fine-tuning seeds); None before fine-tuning."""
        return self.tasks[task].mean if task in self.tasks else None


@dataclass(frozen=True)
class FinishedRun(Student):
    """A whole run, and what branched off it."""

    metrics: list[dict[str, Any]]
    branches: list[Student] = field(default_factory=list)  # in the order of the budget

    def curve(self, metric: str, against: str) -> tuple[list[float], list[float]]:
        """(x, y) of the rows of ``metrics.jsonl`` that hold both ``against`` and ``metric``."""
        rows = [row for row in self.metrics if row.get(metric) is not None and row.get(against) is not None]
        return [float(row[against]) for row in rows], [float(row[metric]) for row in rows]

    def account(self, name: str, unit: str) -> float:
        """What one account of the ledger spent; ``unit`` is ``"seconds"`` or ``"flops"``."""
        return float(self.summary.accounts.get(name, {}).get(unit, 0.0))


@dataclass(frozen=True)
class StudyResults:
    """Everything a study has found so far."""

    directory: Path
    recipe: StudyRecipe  # the effective one: with what tuning chose
    runs: dict[str, dict[int, FinishedRun]]  # arm -> seed -> run, in the recipe's order; finished ones alone
    teacher: RunSummary | None  # summary of the study's own teacher
    missing: list[str] = field(default_factory=list)  # pieces in words
    interval: Method = "t"  # how intervals are made
    tuning: dict[str, Any] | None = None  # tuning.json of a tuned study
    calibration: dict[str, Any] | None = None  # calibration.json of a calibrated one
    registered: list[dict[str, Any]] = field(default_factory=list)  # each version of the promise (`study.journal`)
    looks: list[dict[str, Any]] = field(default_factory=list)  # at its results
    as_given: StudyRecipe | None = None  # the recipe as the file says, without what tuning chose; None: as `recipe`
    resolved: dict[str, StudyRecipe] = field(default_factory=dict)  # arm -> what it really runs (`load` resolves)
    judged: list[JudgedTask] | None = None  # each task by the rule of inclusion; None: it cannot be applied
    controls: dict[str, Control] = field(default_factory=dict)  # those of the recipe, finished or not

    @property
    def arms(self) -> list[str]:
        """The arms that have at least one finished run."""
        return [arm for arm, runs in self.runs.items() if runs]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with: ``scratch``, else the first one."""
        return reference_of(self.recipe)

    @property
    def tasks(self) -> list[str]:
        """The fine-tuning tasks of the recipe, in order."""
        return [task.name for task in self.recipe.finetune.tasks] if self.recipe.finetune else []

    @property
    def missing_controls(self) -> list[str]:
        """What there is not of the controls, in words; a study of an earlier version has none of them."""
        return [said for control in self.controls.values() for said in control.missing]

    @property
    def averaged_tasks(self) -> list[str]:
        """The tasks that scores are averages of: by the rule of inclusion, or all where that cannot be applied."""
        return self.tasks if self.judged is None else [one.task for one in self.judged if one.is_averaged]

    @once
    def learns_from_teacher(self, arm: str) -> bool:
        """Whether an arm learns from the teacher: as its runs recorded; before there is one, as its objective is."""
        if runs := self.runs.get(arm):
            return any(run.summary.teacher is not None for run in runs.values())
        return of_the_teacher.learns_from_teacher(self.recipe.arms[arm])

    def begins_from_teacher(self, arm: str) -> bool:
        """Whether the first weights of its students are layers of the teacher."""
        return self.resolved[arm].student.initialise.from_teacher

    def owes_the_teacher(self, arm: str) -> bool:
        """Whether its students learn from the teacher or begin from it."""
        return self.learns_from_teacher(arm) or self.begins_from_teacher(arm)

    def all_runs(self) -> list[FinishedRun]:
        """Every finished run."""
        return [run for runs in self.runs.values() for run in runs.values()]

    def all_students(self) -> list[Student]:
        """Every finished run, each before its branches."""
        return [student for run in self.all_runs() for student in (run, *run.branches)]

    @once
    def by_seed(self, arm: str, quantity: str, task: str | None = None) -> dict[int, float]:
        """Seed -> value, of the runs of ``arm`` that have it.

        Args:
            quantity: ``"score"`` (average over tasks), ``"probe_loss"``, ``"own_loss"`` (of the student's own head), or
                ``"task"`` (score of ``task``).
        """
        values = {seed: _read(run, quantity, task) for seed, run in self.runs.get(arm, {}).items()}
        return {seed: float(value) for seed, value in values.items() if value is not None}

    @once
    def mean(self, arm: str, quantity: str, task: str | None = None) -> Estimate | None:
        """Mean over seeds with its interval."""
        return estimate(list(self.by_seed(arm, quantity, task).values()), method=self.interval)

    @once
    def difference(self, arm: str, quantity: str, task: str | None = None) -> Estimate | None:
        """``arm`` minus the reference arm, paired by seed; None for the reference itself."""
        if arm == self.reference:
            return None
        values, reference = self.by_seed(arm, quantity, task), self.by_seed(self.reference, quantity, task)
        return paired_difference(values, reference, method=self.interval)


def _read(run: FinishedRun, quantity: str, task: str | None) -> float | None:
    if quantity == "task":
        return run.task_score(task or "")
    losses = {"probe_loss": run.summary.probe_loss, "own_loss": run.summary.own_loss}
    return run.score if quantity == "score" else losses[quantity]


def load(directory: Path | str, interval: Method = "t") -> StudyResults:
    """Read a study's directory, finished or not. Raises `OutputError` when it is no study."""
    directory = Path(directory)
    if not (directory / RECIPE_FILE).is_file():
        raise no_study(directory)
    recipe = with_compile(config.load(directory / RECIPE_FILE, StudyRecipe), directory)
    tuning = read(directory / TUNING_FILE) if recipe.tuning else None
    calibration = read(directory / CALIBRATION_FILE) if recipe.budget.calibrate else None
    given, recipe = recipe, with_tuning(recipe, tuning)
    runs: dict[str, dict[int, FinishedRun]] = {arm: {} for arm in recipe.arms}
    missing = []
    teacher = summaries.finished_run(teacher_directory(directory))
    if recipe.teacher and recipe.teacher.train and teacher is None:
        missing.append("the teacher's own training")
    for arm in recipe.arms:
        for seed in recipe.seeds:
            run = _load_run(directory, recipe, arm, seed)
            if run is None:
                missing.append(f"pretraining of {arm}, seed {seed}")
            else:
                runs[arm][seed] = run
                if recipe.finetune and run.finetune is None:
                    missing.append(f"fine-tuning of {arm}, seed {seed}")
                missing += _missing_branches(recipe, run)
    resolved = {arm: resolve_arm(recipe, arm) for arm in recipe.arms}
    judged = _judged(recipe, runs)
    if judged is not None:
        averaged = [one.task for one in judged if one.is_averaged]
        runs = {arm: {seed: _averaging(run, averaged) for seed, run in of_arm.items()} for arm, of_arm in runs.items()}
    controls = {name: load_control(directory, name, recipe.finetune is not None) for name in recipe.wanted_controls}
    return StudyResults(
        *(directory, recipe, runs, teacher, missing, interval, tuning, calibration),
        registered=registered(directory),
        looks=journal(directory),
        as_given=given,
        resolved=resolved,
        judged=judged,
        controls=controls,
    )


def _judged(recipe: StudyRecipe, runs: dict[str, dict[int, FinishedRun]]) -> list[JudgedTask] | None:
    """Each task of fine-tuning by the recipe's rule; None where that cannot be applied."""
    if recipe.finetune is None:
        return None
    names = [task.name for task in recipe.finetune.tasks]
    arms = {arm: [run.tasks for run in found.values()] for arm, found in runs.items()}
    return inclusion.judge(names, arms, recipe.finetune.inclusion)


def _averaging(run: FinishedRun, averaged: list[str]) -> FinishedRun:
    """``run`` and its branches with their scores over these tasks."""
    return replace(run, averaged=averaged, branches=[replace(one, averaged=averaged) for one in run.branches])


def _load_run(directory: Path, recipe: StudyRecipe, arm: str, seed: int) -> FinishedRun | None:
    where = arm_directory(directory, arm, seed)
    student = _load_student(recipe, arm, seed, 1.0, where, finetune_directory(directory, arm, seed))
    if student is None:
        return None
    found = (
        _load_student(
            *(recipe, arm, seed, fraction),
            branch_directory(directory, arm, seed, fraction),
            branch_finetune_directory(directory, arm, seed, fraction),
        )
        for fraction in (recipe.markers.branches if recipe.markers else [])
    )
    branches = [branch for branch in found if branch]
    return FinishedRun(**vars(student), metrics=records.read_metrics(where), branches=branches)


def _load_student(
    recipe: StudyRecipe, arm: str, seed: int, fraction: float, where: Path, tuned: Path
) -> Student | None:
    summary = summaries.finished_run(where)
    if summary is None:
        return None
    finetune = summaries.finetuned(tuned, summary) if recipe.finetune else None
    return Student(arm, seed, fraction, summary, finetune, summaries.machines(tuned), averaged=None)


def _missing_branches(recipe: StudyRecipe, run: FinishedRun) -> list[str]:
    if recipe.markers is None:
        return []
    there = {branch.fraction: branch for branch in run.branches}
    name = f"{run.arm}, seed {run.seed}"
    missing = [f"branch at {100 * at:g} % of {name}" for at in recipe.markers.branches if at not in there]
    if recipe.finetune and recipe.markers.finetune:
        bare = [at for at, marker in there.items() if marker.finetune is None]
        missing += [f"fine-tuning of the branch at {100 * at:g} % of {name}" for at in bare]
    return missing
