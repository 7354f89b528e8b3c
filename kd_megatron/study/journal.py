"""What was promised of a study before its first step, and when its results were looked at (docs/preregistration.md).

``registered.json`` has each version of the promise with the time and the commit at which it was made; ``journal.jsonl``
has each look at results: which students there were, by the hash of their weights, and what they scored. Both only grow.
A student that is made again with the same seed after a look shows by its hash.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kd_megatron.files import records
from kd_megatron.machine import facts
from kd_megatron.recipe import StudyRecipe, diff
from kd_megatron.study import layout
from kd_megatron.study.effective import read

REGISTERED, JOURNAL = "registered.json", "journal.jsonl"


def register(recipe: StudyRecipe, directory: Path, has_begun: bool) -> None:
    """Record what ``recipe`` promises, unless the newest record has it already. Rank 0 alone.

    Args:
        directory: of the study.
        has_begun: whether a run, or a trial, has begun before.
    """
    promised = promise(recipe)
    digest = hashlib.sha256(json.dumps(promised, sort_keys=True).encode()).hexdigest()
    entries = registered(directory)
    if entries and entries[-1]["sha256"] == digest:
        return
    entry = {
        "time": _now(),
        "commit": facts.commit(),
        "uncommitted_changes": facts.uncommitted_changes(),
        "after_the_first_step": has_begun,
        "sha256": digest,
        "promise": promised,
    }
    records.write_json(directory / REGISTERED, [*entries, entry])


def promise(recipe: StudyRecipe) -> dict[str, Any]:
    """All of a recipe that results hang on, and its protocol, as plain data."""
    without_words = diff.without(recipe, "edit").model_dump(mode="json")
    return without_words | {"protocol": recipe.protocol.model_dump(mode="json") if recipe.protocol else None}


def registered(directory: Path) -> list[dict[str, Any]]:
    """Every version of the promise, the first one first; none of a study of an earlier version."""
    found: Any = read(directory / REGISTERED, expected="what a study promised before its first step")
    return found or []


def record_look(directory: Path) -> None:
    """Record that somebody sees the results there are now; not twice in a row the same. Of a grid, in each cell too."""
    for study in [directory, *sorted(directory.glob("cells/*/"))]:
        seen = _seen(study)
        looks = journal(study)
        if seen["students"] and (not looks or {key: looks[-1][key] for key in seen} != seen):
            lines = (json.dumps(look) for look in [*looks, {"time": _now(), **seen}])
            records.write_text(study / JOURNAL, "".join(f"{line}\n" for line in lines))


def journal(directory: Path) -> list[dict[str, Any]]:
    """Every look at a study, the first one first; a line that a crash tore is left out."""
    return records.read_lines(directory / JOURNAL)


def _seen(study: Path) -> dict[str, Any]:
    """Of each finished student, ``ARM/SEED``, the hash of its weights, and its average score where there is one."""
    students, scores = {}, {}
    for path in sorted(study.glob("arms/*/seed_*/summary.json")):
        arm, seed = path.parent.parent.name, int(path.parent.name.removeprefix("seed_"))
        if summary := layout.finished_run(path.parent):
            students[f"{arm}/{seed}"] = summary.get("export_hash")
            tuned = layout.read_summary(layout.finetune_directory(study, arm, seed))
            if tuned and tuned.get("average") is not None:
                scores[f"{arm}/{seed}"] = tuned["average"]
    return {"students": students, "scores": scores}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
