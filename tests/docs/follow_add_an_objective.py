"""Reads docs/add_an_objective.md, and does what it says in a copy of the repository."""

import re
import shlex
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/add_an_objective.md"
COPIED = ("kd_megatron", "data_prep", "recipes", "ds_configs")


def block(language: str) -> str:
    """The one code block of that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found


def target(of: str) -> str:
    """The file that the page says to write ``of`` to."""
    (found,) = re.findall(rf"[Ww]rite (?:it|this) to `({of}/[\w.]+)`", PAGE.read_text(encoding="utf-8"))
    return found


def registry_lines() -> tuple[str, str]:
    """The import, and the entry of `OBJECTIVES`."""
    text = PAGE.read_text(encoding="utf-8").split("## 2.")[1].split("## 3.")[0]
    importing, entry = re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)
    return importing, entry


def commands() -> list[list[str]]:
    """What the page tells to run, without ./launch.sh."""
    text = PAGE.read_text(encoding="utf-8").split("## 4.")[1]
    return [shlex.split(words)[1:] for words in re.findall(r"^    (\./launch\.sh .*)$", text, flags=re.MULTILINE)]


def repository(directory: Path) -> Path:
    """A copy of what the commands need, with the page's files and lines in it."""
    for name in COPIED:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / target("kd_megatron/objectives")).write_text(block("python"), encoding="utf-8")
    (directory / target("recipes")).write_text(block("yaml"), encoding="utf-8")
    registry = directory / "kd_megatron/objectives/registry.py"
    text, (importing, entry) = registry.read_text(encoding="utf-8"), registry_lines()
    first = text.index("from kd_megatron.objectives.minilm")
    text = f"{text[:first]}{importing}\n{text[first:]}"
    head = "OBJECTIVES: dict[str, tuple[type[ObjectiveOptions], type[Objective]]] = {\n"
    assert head in text
    registry.write_text(text.replace(head, f"{head}    {entry}\n"), encoding="utf-8")
    return directory
