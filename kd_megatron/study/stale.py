"""Moves aside what an edit made stale; nothing is ever removed."""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.study.edits import STALE


def move_aside(sources: Sequence[Path], directory: Path) -> None:
    """Move what there is of ``sources`` to a new directory of the study's ``stale``. Rank 0 alone."""
    sources = [source for source in sources if source.exists()]
    if not sources:
        return
    number = 1 + len(list((directory / STALE).glob("*")))
    for source in sources:
        if source.exists():  # not moved already, with a directory above it
            target = directory / STALE / str(number) / source.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    logs.say(f"moved to {directory / STALE / str(number)}: {', '.join(str(s.relative_to(directory)) for s in sources)}")
