"""A study's journal: when its results were looked at, and what was then done again. Lines are added, never changed.

A look is a report that is written while students are finished. Who does seeds again that a report has shown chooses
between two results, and no interval knows of it: the report takes verdicts away for that
(`kd_megatron.analysis.preregistration`, docs/preregistration.md).
"""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd_megatron.console import logs
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import records
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study import layout
from kd_megatron.study.cells import CELLS

JOURNAL = "journal.jsonl"
LOOK, REDO = "look", "redo"


def now() -> str:
    """This moment in UTC: ``"2026-12-01T10:11:54+00:00"``."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read(directory: Path) -> list[dict[str, Any]]:
    """The entries of a study's journal, oldest first; none where it has none."""
    return records.read_lines(directory / JOURNAL)


def note_look(directory: Path) -> None:
    """Note that a report of the study in ``directory`` is written now; of a grid, in each of its cells.

    Nothing is noted while no student is finished, or where the last entry is a look at the very same students.
    """
    for study in (directory, *sorted((directory / CELLS).glob("*/"))):
        students = list(_finished(study))
        last = (read(study) or [{}])[-1]
        if students and (last.get("what") != LOOK or last["students"] != students):
            _append(study, {"what": LOOK, "time": now(), "students": students})


def note_redo(directory: Path, arms: Sequence[str], finetune: bool, keys: Sequence[str]) -> None:
    """Note that what there is of ``arms``, or of all fine-tunings, is moved aside now to be done again.

    Args:
        arms: whose runs and trials are stale.
        finetune: whether all fine-tunings are.
        keys: of the recipe that were edited, in words.
    """
    begun = [path for arm in arms for path in sorted((directory / "arms" / arm).glob("seed_*"))]
    students = [_student(directory, path.parent.name, int(path.name.removeprefix("seed_"))) for path in begun]
    trials = [arm for arm in arms if (directory / "tuning" / arm).is_dir()]
    tuned = finetune and (directory / "finetune").is_dir()
    if students or trials or tuned:
        entry = {"what": REDO, "time": now(), "keys": list(keys), "students": students}
        _append(directory, entry | {"trials": trials, "finetune": tuned})


def num_looks(directory: Path) -> int:
    """How often the study was looked at so far."""
    return sum(entry["what"] == LOOK for entry in read(directory))


def _finished(directory: Path) -> Iterator[dict[str, Any]]:
    path = directory / layout.RECIPE_FILE
    if not path.is_file():
        return
    recipe = config.load(path, StudyRecipe)
    for arm in recipe.arms:
        for seed in recipe.seeds:
            if layout.finished_run(layout.arm_directory(directory, arm, seed)) is not None:
                yield _student(directory, arm, seed)


def _student(directory: Path, arm: str, seed: int) -> dict[str, Any]:
    """Which one it is: the hash of its export, None of one that is not finished or recorded none; its average score."""
    summary = layout.finished_run(layout.arm_directory(directory, arm, seed)) or {}
    tuned = layout.read_summary(layout.finetune_directory(directory, arm, seed))
    found = {"arm": arm, "seed": seed, "export": summary.get("export_hash"), "finetuned": tuned is not None}
    return found | {"score": tuned.get("average") if tuned else None}


def _append(directory: Path, entry: dict[str, Any]) -> None:
    try:
        with disk_full_is_clear(directory):
            records.append_line(directory / JOURNAL, entry)
    except PermissionError:  # somebody else's study, which may be read
        logs.warn(f"{directory} cannot be written to: its journal does not have this {entry['what']}")
