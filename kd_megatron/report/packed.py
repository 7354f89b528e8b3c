"""A study in one file, ``raw.json``: what its report is made from and nothing else, for a repository.

Packed are the recipe, the summaries and the rows of metrics; places of the machine are cut to names. Unpacking makes a
study's directory of them, so that a packed study is reported like any other, and to the same bytes wherever it is.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.analysis.statistics import Method
from kd_megatron.errors import DataError, OutputError
from kd_megatron.files import records
from kd_megatron.files.portable import without_places
from kd_megatron.finetune.places import MACHINES
from kd_megatron.recipe import recipe_yaml
from kd_megatron.study import layout
from kd_megatron.study.journal import JOURNAL

RAW_FILE = "raw.json"
FORMAT = 1
METRICS = "metrics.jsonl"
PACKED = ("summary.json", MACHINES, METRICS, layout.RECIPE_FILE)  # and every .json, and a journal, beside a recipe
LEFT_OUT = ("report", "checkpoints", "export", "tensorboard", "tuning", "stale")  # directories
OF_NAMES = ("arms", "finetune", "cells")  # directories of directories that a recipe names, by such words too
MOST_TRAINING_ROWS = 50  # of a run, beside its validations: enough for a curve


@dataclass(frozen=True)
class Raw:
    """A packed study, those its laws were fitted with, and how intervals were made."""

    files: dict[str, Any]  # path below the study -> content
    beside: list[dict[str, Any]]  # the same of other studies
    interval: Method

    def write(self, path: Path) -> None:
        """One line for each file, so that a repository's differences can be read."""
        studies = ",\n".join(_lines(files) for files in [self.files, *self.beside])
        head = f'"format": {FORMAT}, "interval": {json.dumps(self.interval)}'
        records.write_text(path, f'{{{head}, "studies": [\n{studies}\n]}}\n')

    def unpack(self, directory: Path) -> tuple[Path, list[Path]]:
        """Make directories of studies below ``directory``; (the study's, those of the others)."""
        places = [directory / "study", *(directory / f"beside_{number}" for number in range(len(self.beside)))]
        for place, files in zip(places, [self.files, *self.beside], strict=True):
            for name, content in files.items():
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_as_text(name, content), encoding="utf-8")
        return places[0], places[1:]


def pack(directory: Path, interval: Method = "t", beside: Sequence[Path | str] = ()) -> Raw:
    """Pack a study's directory, finished or not, and those beside it. Raises `OutputError` when one is no study."""
    return Raw(_pack(directory), [_pack(Path(other)) for other in beside], interval)


def find(path: Path) -> Path | None:
    """The packed study that ``path`` is, or that lies in it; None when it is something else."""
    if path.is_file() and path.suffix == ".json":
        return path
    inside = path / RAW_FILE
    return inside if inside.is_file() and not (path / layout.RECIPE_FILE).is_file() else None


def read(path: Path) -> Raw:
    """Read what `Raw.write` wrote. Raises `DataError` when it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        studies = content["studies"]
        is_known = content["format"] == FORMAT and content["interval"] in ("t", "bootstrap")
        safe = all(_is_safe(name) for files in studies for name in files)
        if not (is_known and safe and all(layout.RECIPE_FILE in files for files in studies)):
            raise ValueError(f"format {content['format']!r}, or files that no study has")
        return Raw(studies[0], studies[1:], content["interval"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            given=f"{path} cannot be read as a packed study: {type(error).__name__}: {error}",
            expected=f"a {RAW_FILE} that `./launch.sh report STUDY --to DIR` wrote, format {FORMAT}",
            fix="give a study's directory, or write the file again from the study",
        ) from error


def _pack(directory: Path) -> dict[str, Any]:
    if not (directory / layout.RECIPE_FILE).is_file():
        raise layout.no_study(directory)
    return {path.relative_to(directory).as_posix(): _content(path) for path in sorted(files(directory))}


def files(directory: Path) -> Iterator[Path]:
    """What is packed of a study's directory, in no order; directories that come and go are passed over."""
    has_recipe = (directory / layout.RECIPE_FILE).is_file()
    try:
        inside = list(directory.iterdir())
    except FileNotFoundError:
        return
    for path in inside:
        is_left_out = path.name in LEFT_OUT and (has_recipe or directory.name not in OF_NAMES)
        if path.is_dir() and not is_left_out and not path.is_symlink():
            yield from files(path)
        elif path.is_file() and (path.name in PACKED or (has_recipe and _is_found(path))):
            yield path


def _is_found(path: Path) -> bool:
    """Whether a study itself wrote this down beside its recipe."""
    return path.suffix == ".json" or path.name == JOURNAL


def _content(path: Path) -> Any:
    if path.name == METRICS:
        return without_places(_thinned(records.read_metrics(path.parent)))
    if path.name == JOURNAL:
        return without_places(records.read_lines(path))
    try:
        text = path.read_text(encoding="utf-8")
        return without_places(recipe_yaml.read(text) if path.suffix == ".yaml" else json.loads(text))
    except ValueError as error:
        raise OutputError(
            given=f"{path} cannot be read: {error}",
            expected="what a run of the study wrote",
            fix="remove the file and run the study again: that piece alone is repeated",
        ) from error


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every validation, and of the other rows so many that a curve can be drawn, the first and the last with them."""
    training = [number for number, row in enumerate(rows) if not _is_validation(row)]
    if len(training) > MOST_TRAINING_ROWS:
        step = (len(training) - 1) / (MOST_TRAINING_ROWS - 1)
        training = [training[round(place * step)] for place in range(MOST_TRAINING_ROWS)]
    kept = set(training)
    return [row for number, row in enumerate(rows) if number in kept or _is_validation(row)]


def _is_validation(row: dict[str, Any]) -> bool:
    return any(key.startswith("validation/") for key in row)


def _lines(files: dict[str, Any]) -> str:
    lines = (f"{json.dumps(name)}: {json.dumps(content, ensure_ascii=False)}" for name, content in files.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _as_text(name: str, content: Any) -> str:
    if name.endswith(".yaml"):
        return recipe_yaml.dump(content)
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in content)
    return json.dumps(content)


def _is_safe(name: str) -> bool:
    """A path below the study that this file could have packed: a packed study may come from anyone."""
    parts = name.split("/")
    return name.endswith((".json", ".jsonl", ".yaml")) and not any(part in ("", ".", "..") for part in parts)
