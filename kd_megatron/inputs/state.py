"""Whether an input is here, and whether it is what the catalogue says."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_megatron.errors import DataError
from kd_megatron.files.manifest import file_sha256
from kd_megatron.finetune.tasks import glue_rows
from kd_megatron.finetune.tasks.tables import Example
from kd_megatron.inputs.catalogue import Input
from kd_megatron.recipe.paths import DATA_HOME, expand

State = Literal["here", "missing", "altered"]


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
        rows = glue_rows.read_local(place.name, place.parent, with_tests=False)
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
