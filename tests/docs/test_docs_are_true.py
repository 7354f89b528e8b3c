"""What the docs name exists: files, links, commands, options, recipes and their keys, exit codes, launch.sh's list."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_megatron import errors
from kd_megatron import recipe as schema
from kd_megatron.cli import main as cli
from kd_megatron.ranks import signals
from kd_megatron.recipe import config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "ds_configs/*.md",
        "kd_megatron/**/*.md",
        "benchmarks/**/*.md",
        "docker/*.md",
    )
    for path in ROOT.glob(pattern)
)
KINDS = {"study": schema.StudyRecipe, "corpus": schema.CorpusRecipe, "finetune": schema.FinetuneRecipe}
LAUNCHER_OPTIONS = {
    **dict.fromkeys(("--procs", "--hosts", "--restarts", "--node-rank", "--num-nodes", "--nodes", "--master"), 1),
    **dict.fromkeys(("--slurm", "--debug", "--help"), 0),
}

# Made by running something, so not in a checkout (sources below directories of these names are looked for).
PRODUCED = (
    "data",
    "runs",
    "studies",
    "report",
    "export",
    "arms",
    "finetune",
    "teacher",
    "checkpoints",
    "figures",
    "tables",
)
WRITTEN_ON_THE_WAY = ("kd_megatron/objectives/last_hidden.py", "recipes/last_hidden.yaml")  # add_an_objective.md
SOURCES = (".py", ".md", ".toml", ".sh", ".cff")
ENDINGS = (*SOURCES, ".yaml", ".json", ".txt")
SEARCHED_BELOW = (ROOT, ROOT / "kd_megatron")  # the package's own prefix may be left out


def is_path(word: str) -> bool:
    """A path of the repository: a known ending, or a slash after the name of a directory; no placeholder."""
    first, slash, _ = word.partition("/")
    if re.search(r"(^|[/_.\-])[A-Z]{2,}", re.sub("README|LICENSE|CONTRIBUTING|CHANGELOG|CITATION", "", word)):
        return False
    if first in PRODUCED and not word.endswith(SOURCES):
        return False
    if word in WRITTEN_ON_THE_WAY:
        return False
    if not slash:
        return word.endswith(SOURCES)  # a bare `manifest.json` is made by a run
    return word.endswith(ENDINGS) or any((place / first).is_dir() for place in SEARCHED_BELOW)


def exists(page: Path, name: str) -> bool:
    """Below the page's own directory, the root or the package; a bare file name anywhere in the package."""
    if any((place / name).exists() for place in (page.parent, *SEARCHED_BELOW)):
        return True
    return "/" not in name and any((ROOT / "kd_megatron").rglob(name))


def named_files(page: Path) -> Iterator[str]:
    """Back-quoted words that are paths of the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from (word for word in re.findall(r"`([\w.\-][\w.\-/]*)`", text) if is_path(word))


def commands(page: Path) -> Iterator[list[str]]:
    """Calls of ./launch.sh in code blocks, indented blocks and back-quotes, as words."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line.partition("#")[0] for line in text.splitlines() if re.match(r"(\s{4,}|\$ )?\S*\s*\./launch\.sh", line)
    ]
    for call in [*lines, *re.findall(r"`([^`\n]*\./launch\.sh[^`\n]*)`", text)]:
        words = shlex.split(call[call.index("./launch.sh") :])
        for stop in ("|", "&&", ";", ">", "2>&1"):
            words = words[: words.index(stop)] if stop in words else words
        yield words[1:]


def split_command(words: list[str]) -> tuple[str | None, list[str]]:
    """The command and its arguments, without launch.sh's own options, which must be known ones."""
    while words and words[0].startswith("-"):
        name = words[0]
        assert name in LAUNCHER_OPTIONS, f"launch.sh has no option {name}"
        words = words[1 + LAUNCHER_OPTIONS[name] :]
    return (words[0], words[1:]) if words else (None, [])


def is_placeholder(word: str) -> bool:
    return bool(re.search(r"\b[A-Z]{2,}\b|\.\.\.", word))


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = cli.Parser(add_help=True)
    cli.command_module(command).add_arguments(parser)
    parser.add_argument("--debug", action="store_true")
    return parser


def check_recipe(recipe: str, overrides: list[str]) -> None:
    """The recipe is shipped, and each override gives a recipe that is still valid."""
    raw = config.read_yaml(ROOT / recipe)
    known = [word for word in overrides if "=" in word and not is_placeholder(word)]
    config.load(ROOT / recipe, KINDS[raw["kind"]], known)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("docs/numerics.md", True),
        ("objectives/base.py", True),
        ("kd_megatron/engine", True),
        ("finetune/no_such.py", True),
        ("errors.py", True),
        ("manifest.json", False),
        ("recipes/NAME.yaml", False),
        ("studies/demo/report/index.html", False),
        ("D/num_heads", False),
        ("training.ds_config", False),
    ],
)
def test_what_counts_as_a_path(word: str, expected: bool):
    assert is_path(word) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path):
    assert not sorted(name for name in named_files(page) if not exists(page, name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_typed(page: Path):
    for words in commands(page):
        command, arguments = split_command(words)
        if command is None or command == "test" or is_placeholder(command) or "--help" in arguments:
            assert command in (None, "test", *cli.COMMANDS, *cli.LAUNCHER_COMMANDS) or is_placeholder(command)
            continue
        if command == "demo":
            command, arguments = "study", ["recipes/demo.yaml", *arguments]
        assert command in cli.COMMANDS, f"no such command: {command}"
        parser = parser_of(command)
        unknown = {
            word.partition("=")[0] for word in arguments if word.startswith("--")
        } - parser._option_string_actions.keys()
        assert not unknown, f"{command} has no {unknown}"
        recipes = [word for word in arguments if re.fullmatch(r"recipes/\S+\.yaml", word) and not is_placeholder(word)]
        for recipe in sorted(set(recipes) - set(WRITTEN_ON_THE_WAY)):
            check_recipe(recipe, [word for word in arguments if re.match(r"[a-z_.]+=", word)])


def test_exit_codes_are_those_of_the_errors():
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (.+) \|$", (ROOT / "docs/exit_codes.md").read_text(), flags=re.MULTILINE
    )
    documented = {name: int(code) for code, name, _ in rows}
    classes = [errors.KdError, *errors.KdError.__subclasses__()]
    assert documented == {error.__name__: error.exit_code for error in classes}
    assert len({error.exit_code for error in classes}) == len(classes)


def test_other_exit_codes_are_those_of_the_command_line():
    text = (ROOT / "docs/exit_codes.md").read_text()
    for code in (0, signals.EXIT_CTRL_C, cli.EXIT_BROKEN_PIPE):
        assert f"\n| {code} | |" in text


def test_launch_lists_every_command():
    listed = re.findall(r"^  ([a-z]+) {2,}", (ROOT / "launch.sh").read_text(), flags=re.MULTILINE)
    assert set(listed) == {*cli.COMMANDS, *cli.LAUNCHER_COMMANDS}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.name)
def test_files_named_in_recipes_exist(path: Path):
    named = re.findall(r"\b(?:recipes|docs|ds_configs)/[\w/.]+\.\w+", path.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]
