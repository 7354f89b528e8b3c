"""The hostfile of deepspeed: one node a line, ``node1 slots=8``; ``#`` begins a comment."""

import re
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.errors import RecipeError


@dataclass(frozen=True)
class Host:
    """One node: the name that ssh knows, and how many processes it runs."""

    name: str
    slots: int


def read_hostfile(path: Path | str) -> list[Host]:
    """The nodes in order; the first is where ranks meet. Raises `RecipeError` for a line that is not one."""
    expected = "lines such as 'node1 slots=8'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    lines = [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines:
        raise RecipeError(given=f"hostfile {path} is missing or empty", expected=expected, fix="write one")
    hosts = []
    for line in lines:
        match = re.fullmatch(r"([\w.@:-]+)\s+slots=([1-9]\d*)", line)
        if match is None or match[1].startswith("-"):
            raise RecipeError(given=f"hostfile {path}: line {line!r}", expected=expected, fix="correct the line")
        hosts.append(Host(match[1], int(match[2])))
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            given=f"hostfile {path} names {', '.join(twice)} twice",
            expected="each node once",
            fix="put all its processes into one line",
        )
    return hosts
