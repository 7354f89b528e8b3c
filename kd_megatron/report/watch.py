"""A running study, watched: where each run is, and its report again whenever a piece is finished. Reads alone."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from kd_megatron.analysis import leads, results
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.statistics import Method
from kd_megatron.console import logs, units
from kd_megatron.report import packed
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.clock import duration

EVERY_SECONDS = 5.0
TAIL_BYTES = 1 << 16  # of metrics.jsonl: the newest rows
COLUMNS = ("arm", "seed", "state", "step", "tokens", "budget", "loss", "probe", "left", "last word")


@dataclass(frozen=True)
class Where:
    """How far one run is."""

    arm: str
    seed: int
    state: str  # "waiting", "pretraining", "to fine-tune", "fine-tuning", "finished"
    row: dict[str, Any]  # the newest of its metrics; empty before there is one
    probe_loss: float | None
    silent_seconds: float | None  # since its newest row, while it is pretrained

    @property
    def seconds_left(self) -> float | None:
        """Charged seconds until the budget is spent, at the speed so far; None when unknown."""
        share, hours = self.row.get("budget_fraction"), self.row.get("hours")
        if self.state != "pretraining" or not share or hours is None:
            return None
        return max(0.0, 1.0 - share) / share * hours * 3600.0

    def cells(self) -> list[str]:
        """As text, in the order of `COLUMNS`."""
        left, silent, share = self.seconds_left, self.silent_seconds, self.row.get("budget_fraction")
        loss = self.row.get("loss")
        return [
            self.arm,
            str(self.seed),
            self.state,
            units.count(self.row.get("step")),
            units.count(self.row.get("tokens")),
            units.NOTHING if share is None else f"{share:.0%}",
            units.NOTHING if loss is None else f"{loss:.4g}",
            units.thousandths(self.probe_loss),
            units.NOTHING if left is None else duration(left),
            units.NOTHING if silent is None else f"{duration(silent)} ago",
        ]


def watch(
    directory: Path, interval: Method = "t", beside: Sequence[Path | str] = (), every_seconds: float = EVERY_SECONDS
) -> Path:
    """Follow a study until it is finished, or until Ctrl-C.

    Args:
        directory: of a study, running or not.
        interval: how the report's intervals are made.
        beside: other studies whose losses the laws are fitted to as well.
        every_seconds: how often to look.

    Returns:
        The path of the report's page.

    Raises:
        OutputError: ``directory`` is no study, or a file of it is damaged.
        RecipeError: too few seeds for this kind of interval.
    """
    page, seen = directory / "report" / "index.html", None
    with contextlib.suppress(KeyboardInterrupt), Live(console=logs.console, auto_refresh=False) as live:
        while True:
            studies, missing = load(directory, interval)
            now = pieces(directory)  # after it: what was not missing then is among these, so the report has it too
            live.update(Group(*map(table, studies)), refresh=logs.console.is_terminal)
            if now != seen:
                page, seen = write_report(directory, interval, beside), now
                if not logs.console.is_terminal:
                    logs.say("; ".join(f"{study.recipe.name}: {done(study)}" for study in studies) or "nothing yet")
            if not missing:
                break
            time.sleep(every_seconds)
    return page


def load(directory: Path, interval: Method) -> tuple[list[StudyResults], list[str]]:
    """(the study, or of a grid the cells that were begun; what is missing)."""
    if layout.is_grid(directory):
        grid = leads.load(directory, interval)
        return [cell.study for cell in grid.cells], grid.missing
    study = results.load(directory, interval)
    return [study], study.missing


def pieces(directory: Path) -> dict[str, tuple[int, int]]:
    """The files that say what is finished, with time and size: the report changes when these do."""
    found = {}
    for path in packed.files(directory):
        if path.name not in (packed.METRICS, packed.JOURNAL):
            with contextlib.suppress(FileNotFoundError):  # moved aside at this moment
                facts = path.stat()
                found[path.relative_to(directory).as_posix()] = (facts.st_mtime_ns, facts.st_size)
    return found


def table(study: StudyResults) -> Table:
    """One line for each run of the recipe."""
    found = Table(title=f"Study {study.recipe.name}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        found.add_column(column, justify="left" if column in ("arm", "state") else "right", no_wrap=True)
    for where in progress(study):
        style = {"pretraining": "bold", "finished": "dim"}.get(where.state)
        found.add_row(*where.cells(), style=style)
    found.caption = done(study)
    return found


def done(study: StudyResults) -> str:
    """``"3 of 8 runs pretrained, 2 fine-tuned"``, or ``"finished"``."""
    if not study.missing:
        return "finished"
    runs, num = study.all_runs(), len(study.recipe.arms) * len(study.recipe.seeds)
    finetuned = f", {sum(run.finetune is not None for run in runs)} fine-tuned" if study.recipe.finetune else ""
    return f"{len(runs)} of {num} runs pretrained{finetuned}"


def progress(study: StudyResults) -> Iterator[Where]:
    """Every run of the recipe, in the order in which a study runs them; first its own teacher, where it trains one."""
    if study.recipe.teacher and study.recipe.teacher.train:
        place, seed = layout.teacher_directory(study.directory), study.recipe.teacher.train.seed
        yield _where("teacher", seed, place, "finished" if study.teacher else None)
    for seed in study.recipe.seeds:
        for arm in study.recipe.arms:
            run = study.runs[arm].get(seed)
            place = layout.arm_directory(study.directory, arm, seed)
            done = _after_pretraining(study, run) if run else None
            yield _where(arm, seed, place, done, run.probe_loss if run else None)


def _where(name: str, seed: int, place: Path, done: str | None, probe_loss: float | None = None) -> Where:
    row, written = last_row(place)
    silent = None if done or written is None else max(0.0, time.time() - written)
    return Where(name, seed, done or ("pretraining" if row else "waiting"), row, probe_loss, silent)


def _after_pretraining(study: StudyResults, run: FinishedRun) -> str:
    if study.recipe.finetune is None or run.finetune is not None:
        return "finished"
    begun = layout.finetune_directory(study.directory, run.arm, run.seed).is_dir()
    return "fine-tuning" if begun else "to fine-tune"


def last_row(directory: Path) -> tuple[dict[str, Any], float | None]:
    """(the newest row of a run's metrics with a loss, when the file was last written); a torn line is passed over."""
    try:
        with (directory / packed.METRICS).open("rb") as file:
            facts = os.fstat(file.fileno())
            file.seek(max(0, facts.st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}, None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and row.get("loss") is not None:
                return row, facts.st_mtime
    return {}, facts.st_mtime
