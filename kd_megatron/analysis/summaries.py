"""What a report reads of the summaries that finished runs and fine-tunings left, typed; of earlier versions' as well.

What every version has recorded is needed, and its absence is an error that names the file. The rest has a default and
may be absent: what is not known is None or empty, and nothing is said of it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kd_megatron.errors import OutputError
from kd_megatron.finetune.places import MACHINES
from kd_megatron.study import layout
from kd_megatron.study.effective import read


@dataclass(frozen=True)
class Budget:
    """What a run was given and what it spent, in ``unit``."""

    unit: str
    limit: float
    spent: float
    charge: list[str]  # accounts of the ledger
    calibrated_steps: int | None  # that were fixed before training; None: the budget ended the run


@dataclass(frozen=True)
class CacheUse:
    """What a run found and left in a cache of the teacher's outputs."""

    path: str
    kept: str
    bytes_per_token: float
    gib_on_disk: float
    num_students: int
    rows_filled: int
    rows_read: int


@dataclass(frozen=True)
class TeacherFacts:
    """The teacher that a run learned from."""

    parameters: int | None = None
    cost_flops: float | None = None  # of its own training, as the recipe states it
    cost_source: str | None = None
    cache: CacheUse | None = None


@dataclass(frozen=True)
class BranchFacts:
    """How a branch came down, after it had left its run."""

    decayed: bool
    decay_steps: int


@dataclass(frozen=True)
class ProbeFacts:
    """How a probe was trained, and what one at the highest trained layer reads where the top was never trained."""

    converged: bool
    steps: int
    curve: list[float]  # nats on the slice that says when to stop: at first, then after each pass
    tap_layer: int | None = None
    tap_loss: float | None = None  # held-out, in nats per masked token


@dataclass(frozen=True)
class RunSummary:
    """A finished pretraining run, of a student or of the study's own teacher."""

    steps: int
    tokens: int
    unique_tokens: int
    parameters: int
    flops: float  # charged
    hours: float  # charged
    tokens_per_second: float
    budget: Budget
    accounts: Mapping[str, Mapping[str, float]]  # of the ledger: name -> unit -> what was spent
    probe_loss: float | None  # held-out MLM loss of the probe head, in nats per masked token
    own_loss: float | None  # the same of the student's own head; None where its objective trains none
    teacher: TeacherFacts | None  # None: it has none
    branch: BranchFacts | None  # None: a whole run
    probe: ProbeFacts | None = None  # None: not recorded, as in versions whose probe had a fixed number of steps
    untrained_parameters: list[str] = field(default_factory=list)
    export_hash: str | None = None
    settings: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None

    @property
    def epochs(self) -> float:
        """How often its text was seen on average."""
        return self.tokens / max(self.unique_tokens, 1)


@dataclass(frozen=True)
class ControlSummary:
    """The measurement of a model that no arm trained."""

    parameters: int
    probe_loss: float | None  # held-out MLM loss of the probe head, in nats per masked token
    own_loss: float | None  # the same of its own head; None where it has none
    export_hash: str | None = None


@dataclass(frozen=True)
class TaskSummary:
    """One task of a fine-tuning."""

    metric: str
    mean: float
    num_runs: int
    scores: dict[str, float] = field(default_factory=dict)  # by fine-tuning seed
    best_cell: dict[str, Any] = field(default_factory=dict)  # learning rate and batch size that they are of
    cells: list[dict[str, Any]] = field(default_factory=list)
    num_train: int | None = None
    num_dev: int | None = None
    partial_split: bool = False
    note: str = ""
    content_hash: str | None = None  # of its rows
    majority_score: float | None = None  # of always giving the commonest label of the training rows; None: not recorded
    num_collapsed: int = 0  # of the cells with the best setting, those that ended at the majority class

    @property
    def best_cells(self) -> list[dict[str, Any]]:
        """The cells that its scores are of."""
        return [
            cell
            for cell in self.cells
            if all(cell.get(key) == value for key, value in self.best_cell.items())
            and (not self.scores or str(cell.get("seed")) in self.scores)
        ]

    @property
    def used_seeds(self) -> set[int]:
        """What its scores were drawn from; as listed, where an earlier version recorded no more."""
        cells = self.best_cells
        return {cell.get("used_seed", cell["seed"]) for cell in cells} if cells else set(map(int, self.scores))


@dataclass(frozen=True)
class FinetuneSummary:
    """A finished fine-tuning."""

    tasks: dict[str, TaskSummary]
    average: float
    model: str | None = None
    model_hash: str | None = None
    precision: str | None = None
    selection: str | None = None  # in words
    averages: dict[str, dict[str, Any]] = field(default_factory=dict)  # that others take
    settings: dict[str, Any] | None = None


Made = TypeVar("Made")


class _Record:
    """A mapping of a file; what is needed of it and absent is an error."""

    def __init__(self, path: Path, content: Any, place: str = "") -> None:
        self.path, self.content, self.place = path, content, place

    def __getitem__(self, key: str) -> Any:
        if not isinstance(self.content, dict) or key not in self.content:
            raise OutputError(
                given=f"{self.path} has no {self.place}{key}",
                expected="the summary of a finished run, whole",
                fix="remove the file and run the study again: that piece alone is repeated",
            )
        return self.content[key]

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value; ``otherwise`` where it is absent or null."""
        found = self.content.get(key) if isinstance(self.content, dict) else None
        return otherwise if found is None else found

    def part(self, key: str) -> "_Record":
        """A section that is needed."""
        return _Record(self.path, self[key], f"{self.place}{key}.")

    def optional(self, key: str) -> "_Record | None":
        """A section that may be absent or null."""
        return self.part(key) if self.get(key) else None

    def filled(self, made: type[Made], **known: Any) -> Made:
        """The values that the fields of a dataclass name, beside those ``known``; one with a default may be absent."""
        for one in dataclasses.fields(made):  # type: ignore[arg-type]
            if one.name not in known:
                is_needed = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
                value = self[one.name] if is_needed else self.get(one.name)
                known |= {one.name: value} if is_needed or value is not None else {}
        return made(**known)


def finished_run(directory: Path) -> RunSummary | None:
    """The summary of a finished run; None when it is not finished. Raises `OutputError` when it is damaged."""
    content = layout.finished_run(directory)
    return _run(_Record(directory / "summary.json", content)) if content else None


def finetuning(directory: Path) -> FinetuneSummary | None:
    """The summary of a fine-tuning; None when there is none yet. Raises `OutputError` when it is damaged."""
    content = layout.read_summary(directory)
    return _finetuning(_Record(directory / "summary.json", content)) if content else None


def control(directory: Path) -> ControlSummary | None:
    """The summary of a finished control; None when there is none. Raises `OutputError` when it is damaged."""
    content = layout.finished_run(directory)
    if content is None:
        return None
    record = _Record(directory / "summary.json", content)
    losses = record.part("validation")
    own, probe = losses.get("mlm_loss"), losses.get("probe_mlm_loss")
    return record.filled(ControlSummary, probe_loss=probe, own_loss=own)


def finetuned(directory: Path, student: RunSummary | ControlSummary) -> FinetuneSummary | None:
    """The summary of the fine-tuning in ``directory``; None when there is none yet, or it is of another student.

    Args:
        directory: of the fine-tuning.
        student: the summary of its run. Earlier versions recorded no hash of the export: they are taken at their word.
    """
    summary = finetuning(directory)
    hashes = summary.model_hash if summary else None, student.export_hash
    return None if None not in hashes and hashes[0] != hashes[1] else summary


def machines(directory: Path) -> list[dict[str, Any]]:
    """What the fine-tuning in ``directory`` was run with, one entry for each start that differs; may be empty."""
    found: Any = read(directory / MACHINES)
    return found or []


def _run(record: _Record) -> RunSummary:
    budget, branch, teacher = record.part("budget"), record.optional("branch"), record.optional("teacher")
    calibrated, cache = budget.optional("calibrated"), teacher.optional("cache") if teacher else None
    return record.filled(
        RunSummary,
        probe=_probe(record.part("validation")),
        budget=budget.filled(Budget, calibrated_steps=calibrated["steps"] if calibrated else None),
        accounts=record.part("ledger")["accounts"],
        probe_loss=record.part("validation").get("probe_mlm_loss"),
        own_loss=record.part("validation").get("mlm_loss"),
        teacher=teacher.filled(TeacherFacts, cache=cache.filled(CacheUse) if cache else None) if teacher else None,
        branch=branch.filled(BranchFacts) if branch else None,
    )


def _probe(validation: _Record) -> ProbeFacts | None:
    if validation.get("probe_converged") is None:
        return None
    converged, steps, curve = (validation[f"probe_{key}"] for key in ("converged", "steps", "curve"))
    return ProbeFacts(converged, steps, curve, validation.get("probe_tap_layer"), validation.get("probe_tap_mlm_loss"))


def _finetuning(record: _Record) -> FinetuneSummary:
    tasks = record.part("tasks")
    return record.filled(FinetuneSummary, tasks={name: _task(tasks.part(name)) for name in tasks.content})


def _task(record: _Record) -> TaskSummary:
    return record.filled(TaskSummary, num_runs=record.get("num_runs", len(record.get("cells", []))))
