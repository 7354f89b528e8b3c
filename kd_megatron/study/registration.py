"""What a study promises, written down before its first step, and every later change of it beside.

``registered.json`` holds one entry for each promise that the study was given: when, at which commit, what had run by
then. The first entry is never changed. docs/preregistration.md.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import records
from kd_megatron.files.portable import without_places
from kd_megatron.machine import facts
from kd_megatron.recipe import StudyRecipe, diff
from kd_megatron.study import journal
from kd_megatron.study.cells import CELLS
from kd_megatron.study.effective import read

REGISTERED = "registered.json"
SIGNS_OF_A_STEP = ("fingerprint.json", "metrics.jsonl", "summary.json")  # the first is written right before it


def register(recipe: StudyRecipe, directory: Path) -> None:
    """Add an entry to the study's ``registered.json`` where there is none, or the promise has changed. Rank 0 alone."""
    entries = read_entries(directory)
    promised = promise(recipe)
    if entries and not changes(entries[-1]["promise"], promised):
        return
    entry = {
        "time": journal.now(),
        "commit": facts.commit(),
        "uncommitted_changes": facts.uncommitted_changes(),
        "uncommitted_hash": facts.uncommitted_hash(),
        "sha256": sha256(promised),
        "begun": begun(directory),
        "looks": journal.num_looks(directory),
        "promise": promised,
    }
    with disk_full_is_clear(directory):
        records.write_json(directory / REGISTERED, {"entries": [*entries, entry]})


def read_entries(directory: Path) -> list[dict[str, Any]]:
    """The entries of a study's directory, oldest first; none where nothing was registered."""
    return list((read(directory / REGISTERED) or {"entries": []})["entries"])


def promise(recipe: StudyRecipe) -> dict[str, Any]:
    """The protocol, and all that an edit of makes runs stale: words and places of this machine are no part of it."""
    left_out = {key: part for key, part in diff.left_out(StudyRecipe, "edit").items() if key != "protocol"}
    found: dict[str, Any] = without_places(recipe.model_dump(mode="json", exclude=left_out), below_here=False)
    return found


def sha256(promised: dict[str, Any]) -> str:
    """Of a promise as JSON, its keys sorted, without white space."""
    return hashlib.sha256(json.dumps(promised, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[diff.KeyChange]:
    """The keys in which two promises differ; those that a version added since stand at their defaults."""
    before, after = (diff.with_defaults(StudyRecipe, one) for one in (was, now))
    return diff.changes(StudyRecipe, before, after)


def begun(directory: Path) -> list[str]:
    """The counted runs that have taken a step, or were about to, each as ``ARM/SEED``; of a grid those of its cells."""
    places = [directory, *sorted((directory / CELLS).glob("*/"))]
    runs = [run for study in places for run in sorted((study / "arms").glob("*/seed_*"))]
    found = (run for run in runs if any((run / name).is_file() for name in SIGNS_OF_A_STEP))
    return list(dict.fromkeys(f"{run.parent.name}/{run.name.removeprefix('seed_')}" for run in found))
