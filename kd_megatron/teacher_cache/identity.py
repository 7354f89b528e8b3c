"""Whose outputs a store holds: a store of another teacher, text, mask or precision is never read."""

import json
import os
from pathlib import Path
from typing import Any

from kd_megatron.errors import OutputError, disk_full_is_clear
from kd_megatron.files import atomic
from kd_megatron.recipe.paths import refuse_file_or_links_out
from kd_megatron.teacher_cache.contents import Contents

IDENTITY = "identity.json"
FORMAT = 1

Identity = dict[str, Any]


def identity_of(contents: Contents, teacher: dict[str, str | None], windows: dict[str, Any]) -> Identity:
    """Everything that decides a row's bytes.

    Args:
        teacher: of the teacher, its weights' hash and its precision.
        windows: of the loader, what decides the window of a row and its mask.
    """
    parts = {part.name: f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}" for part in contents.parts}
    described: Identity = {"format": FORMAT, **teacher, **windows, "inputs": contents.inputs}
    described |= {"vocabulary": contents.teacher.vocab_size, "row": parts, "row_bytes": contents.row_bytes}
    if contents.needs.logits:
        described |= {"top_k": contents.top_k, "temperature": contents.temperature}
    return described


def claim_cache(directory: Path, identity: Identity) -> None:
    """Make ``directory`` the store of ``identity``, or check that it is.

    Raises:
        OutputError: it holds something else; each difference is named.
    """
    refuse_file_or_links_out(directory)
    path = directory / IDENTITY
    if not path.exists():
        own = ("lock", atomic.partial(path).name)
        strangers = sorted(p.name for p in directory.iterdir() if p.name not in own)
        if strangers:
            raise OutputError(
                given=f"{directory} holds files, but no {IDENTITY}: {', '.join(strangers[:3])}",
                expected="a teacher cache, or an empty directory",
                fix="give another teacher.cache.path, or remove the directory",
            )
        _write(path, identity)
    found = read(directory)
    differing = [
        f"{key}: {found.get(key)!r} in the cache, {identity.get(key)!r} in the recipe"
        for key in dict.fromkeys((*identity, *found))
        if found.get(key) != identity.get(key)
    ]
    if differing:
        raise OutputError(
            given=f"the teacher cache {directory} was filled for something else; " + "; ".join(differing),
            expected="the same teacher, text, masks and precision",
            fix="restore the recipe, give another teacher.cache.path, or remove the directory to fill it anew",
        )


def read(directory: Path) -> Identity:
    """The identity of the store in ``directory``. Raises `OutputError` when it cannot be read."""
    path = directory / IDENTITY
    try:
        identity: Identity = json.loads(path.read_text(encoding="utf-8"))
        return identity
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OutputError(
            given=f"{path} cannot be read: {error}",
            expected="what an earlier run wrote there",
            fix="remove the directory: the cache is filled anew",
        ) from error


def _write(path: Path, identity: Identity) -> None:
    """All or nothing, also when the power fails."""
    with disk_full_is_clear(path), atomic.new_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        json.dump(identity, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
