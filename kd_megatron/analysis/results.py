"""A study's directory, read back: which pieces there are, and what each one found.

    studies/NAME/  study.yaml  teacher/  arms/ARM/seed_K/  finetune/ARM/seed_K/  report/

Only ``summary.json`` with ``"status": "finished"`` counts as a result; anything else is a piece still missing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_megatron.analysis import summaries
from kd_megatron.analysis.once import once
from kd_megatron.analysis.statistics import Estimate, Method, estimate, paired_difference
from kd_megatron.analysis.summaries import FinetuneSummary, RunSummary, TaskSummary
from kd_megatron.files import records
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.recipe.arms import resolve_arm
from kd_megatron.study.effective import CALIBRATION_FILE, TUNING_FILE, read, with_tuning
from kd_megatron.study.layout import (
    PREFERRED_REFERENCE,
    RECIPE_FILE,
    arm_directory,
    branch_directory,
    branch_finetune_directory,
    finetune_directory,
    no_study,
    teacher_directory,
)


@dataclass(frozen=True)
class BranchResult:
    """A student that left its run before the end: what a smaller budget buys."""

    fraction: float  # of the budget
    summary: RunSummary
    finetune: FinetuneSummary | None
    machines: list[dict[str, Any]] = field(default_factory=list)  # that it was fine-tuned on

    @property
    def tokens(self) -> int:
        """Tokens seen, those of the run before it left included."""
        return int(self.summary.tokens)

    @property
    def flops(self) -> float:
        """FLOPs charged, likewise."""
        return float(self.summary.flops)

    @property
    def decayed(self) -> bool:
        """Whether its learning rate came down."""
        return self.summary.branch is not None and self.summary.branch.decayed

    @property
    def decay_tokens(self) -> int:
        """Tokens that the branch saw after it had left."""
        steps = self.summary.branch.decay_steps if self.summary.branch else 0
        return round(self.tokens * steps / max(self.summary.steps, 1))

    @property
    def probe_loss(self) -> float | None:
        """Held-out MLM loss of the probe head, in nats per masked token."""
        return self.summary.probe_loss


@dataclass(frozen=True)
class FinishedRun:
    """One student: an arm with one seed."""

    arm: str
    seed: int
    directory: Path
    summary: RunSummary
    metrics: list[dict[str, Any]]
    finetune: FinetuneSummary | None
    branches: list[BranchResult] = field(default_factory=list)  # in the order of the budget
    machines: list[dict[str, Any]] = field(default_factory=list)  # that it was fine-tuned on

    def curve(self, metric: str, against: str) -> tuple[list[float], list[float]]:
        """(x, y) of the rows of ``metrics.jsonl`` that hold both ``against`` and ``metric``."""
        rows = [row for row in self.metrics if row.get(metric) is not None and row.get(against) is not None]
        return [float(row[against]) for row in rows], [float(row[metric]) for row in rows]

    def account(self, name: str, unit: str) -> float:
        """What one account of the ledger spent; ``unit`` is ``"seconds"`` or ``"flops"``."""
        return float(self.summary.accounts.get(name, {}).get(unit, 0.0))

    @property
    def probe_loss(self) -> float | None:
        """Held-out MLM loss of the probe head, in nats per masked token."""
        return self.summary.probe_loss

    @property
    def score(self) -> float | None:
        """Average over tasks, in [0, 1]; None before fine-tuning."""
        return self.finetune.average if self.finetune else None

    def task_score(self, task: str) -> float | None:
        """Score of one task (mean over fine-tuning seeds); None before fine-tuning."""
        return self.tasks[task].mean if task in self.tasks else None

    @property
    def tasks(self) -> dict[str, TaskSummary]:
        """What fine-tuning found, by task; empty before it."""
        return self.finetune.tasks if self.finetune else {}


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
    resolved: dict[str, StudyRecipe] = field(default_factory=dict)  # arm -> what it really runs (`load` resolves)

    @property
    def arms(self) -> list[str]:
        """The arms that have at least one finished run."""
        return [arm for arm, runs in self.runs.items() if runs]

    @property
    def reference(self) -> str:
        """The arm that the others are compared with: ``scratch``, else the first one."""
        return PREFERRED_REFERENCE if PREFERRED_REFERENCE in self.recipe.arms else next(iter(self.recipe.arms))

    @property
    def tasks(self) -> list[str]:
        """The fine-tuning tasks of the recipe, in order."""
        return [task.name for task in self.recipe.finetune.tasks] if self.recipe.finetune else []

    @once
    def learns_from_teacher(self, arm: str) -> bool:
        """Whether an arm learns from the teacher: as its runs recorded; before there is one, as its objective is."""
        if runs := self.runs.get(arm):
            return any(run.summary.teacher is not None for run in runs.values())
        from kd_megatron.objectives.of_the_teacher import learns_from_teacher

        return learns_from_teacher(self.recipe.arms[arm])

    def begins_from_teacher(self, arm: str) -> bool:
        """Whether the first weights of its students are layers of the teacher; without one they could not exist."""
        return self.resolved[arm].student.initialise.method == "teacher_layers"

    def owes_the_teacher(self, arm: str) -> bool:
        """Whether its students learn from the teacher or begin from it."""
        return self.learns_from_teacher(arm) or self.begins_from_teacher(arm)

    def all_runs(self) -> list[FinishedRun]:
        """Every finished run."""
        return [run for runs in self.runs.values() for run in runs.values()]

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
    recipe = config.load(directory / RECIPE_FILE, StudyRecipe)
    tuning = read(directory / TUNING_FILE) if recipe.tuning else None
    calibration = read(directory / CALIBRATION_FILE) if recipe.budget.calibrate else None
    recipe = with_tuning(recipe, tuning)
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
    return StudyResults(directory, recipe, runs, teacher, missing, interval, tuning, calibration, resolved)


def _load_run(directory: Path, recipe: StudyRecipe, arm: str, seed: int) -> FinishedRun | None:
    where = arm_directory(directory, arm, seed)
    summary = summaries.finished_run(where)
    if summary is None:
        return None
    tuned = finetune_directory(directory, arm, seed)
    finetune = summaries.finetuned(tuned, summary) if recipe.finetune else None
    branches = _load_branches(directory, recipe, arm, seed)
    return FinishedRun(
        arm, seed, where, summary, records.read_metrics(where), finetune, branches, summaries.machines(tuned)
    )


def _load_branches(directory: Path, recipe: StudyRecipe, arm: str, seed: int) -> list[BranchResult]:
    found = []
    for fraction in recipe.markers.branches if recipe.markers else []:
        summary = summaries.finished_run(branch_directory(directory, arm, seed, fraction))
        if summary is not None:
            tuned = branch_finetune_directory(directory, arm, seed, fraction)
            finetune = summaries.finetuned(tuned, summary) if recipe.finetune else None
            found.append(BranchResult(fraction, summary, finetune, summaries.machines(tuned)))
    return found


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
