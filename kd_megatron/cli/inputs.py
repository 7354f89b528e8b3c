"""``inputs``: what a recipe needs that the repository does not have, and how to get it."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_megatron.inputs.catalogue import Input
    from kd_megatron.inputs.fetch import Found

HELP = "list the texts, models and tasks that recipes need from elsewhere; --fetch gets them"

DESCRIPTION = """
Shipped recipes name real inputs below $KD_DATA: the directory that the environment variable KD_DATA names, or data/
where it is not set. This command looks at every input of the given recipes (of all recipes, without one) and prints
whether it is here and as it should be (every byte is compared), its size, its licence, and how to get it.

With --fetch, what PyPI or the Hugging Face hub has is fetched at a pinned version or commit, compared with the
catalogue's content hashes, and put in its place whole or not at all. What nobody distributes can be replaced by
something like it: the command for that is printed.

Exit code 3 when an input is missing or altered.
"""

EXAMPLES = """
examples:
  ./launch.sh inputs recipes/wiki_small.yaml
  ./launch.sh inputs recipes/wiki_small.yaml --fetch
  KD_DATA=/big/disk ./launch.sh inputs recipes/glue.yaml --fetch
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipes and ``--fetch``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="such as recipes/wiki_small.yaml (default: all)")
    parser.add_argument("--fetch", action="store_true", help="get what is missing, where PyPI or the hub has it")


def run(args: argparse.Namespace) -> int:
    """Look at every input, fetch where asked for, print."""
    from kd_megatron.errors import DataError
    from kd_megatron.inputs.catalogue import catalogue, needed
    from kd_megatron.inputs.fetch import find
    from kd_megatron.recipe import config

    known = catalogue().inputs
    names = sorted({name for path in args.recipes for name in needed(config.read_yaml(path))})
    if not args.recipes:
        names = list(known)
    if not names:
        print("These recipes need nothing from elsewhere.")
        return 0
    found = [find(name, known.get(name)) for name in names]
    if args.fetch:
        found = [_fetched(one, known.get(one.name)) for one in found]
    _print_table(found, known)
    absent = [one for one in found if one.state != "here"]
    for path in args.recipes:
        _print_replacements(path, {one.name for one in absent})
    return DataError.exit_code if absent else 0


def _fetched(one: "Found", known: "Input | None") -> "Found":
    """``one`` as it is after fetching it, where that can be done; what cannot be had is said, and the rest goes on."""
    from dataclasses import replace

    from kd_megatron.console import logs
    from kd_megatron.errors import KdError
    from kd_megatron.inputs.catalogue import Made
    from kd_megatron.inputs.fetch import fetch

    if one.state == "here" or known is None or all(isinstance(way, Made) for way in known.ways):
        return one  # also where there is no way at all
    logs.say(f"{one.name} ({known.bytes / 1e6:,.1f} MB)")
    try:
        fetch(one.name, known)
    except KdError as error:
        logs.warn(str(error))
        return one
    return replace(one, state="here")  # every byte was compared before it was put there


def _print_table(found: "list[Found]", known: "dict[str, Input]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="inputs below $KD_DATA", title_justify="left")
    for column in ("input", "state", "MB", "licence", "how to get it"):
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for one in found:
        entry = known.get(one.name)
        size = f"{entry.bytes / 1e6:,.1f}" if entry else ""
        ways = entry.origin if entry else "not in the catalogue"
        table.add_row(one.name, one.state, size, entry.licence if entry else "", ways)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for one in found:
        if one.why:
            console.print(f"{one.name}: {one.why}")
    missing = sum(known[one.name].bytes for one in found if one.state != "here" and one.name in known)
    if missing:
        console.print(f"missing or altered: {missing / 1e6:,.1f} MB")


def _print_replacements(recipe: str, absent: set[str]) -> None:
    """What a study can be run with instead of inputs that nobody distributes, as commands in their order."""
    from kd_megatron.inputs.catalogue import Made, catalogue
    from kd_megatron.recipe import config

    raw = config.read_yaml(recipe)
    commands, overrides = [], []
    corpus = catalogue().corpora.get(str((raw.get("data") or {}).get("corpus")))
    if corpus and absent & {name for name in corpus.inputs if name.startswith("corpus/")}:
        output = config.read_yaml(corpus.instead)["output"]
        commands.append(f"./launch.sh prepare {corpus.instead}   # Wikipedia of 2023 from the hub: other text")
        overrides += [f"data.corpus={corpus.instead}", f"'data.shards=[{{path: {output}}}]'"]
    teacher = str((raw.get("teacher") or {}).get("path"))
    for name in sorted(absent & catalogue().inputs.keys()):
        for way in catalogue().inputs[name].ways:
            if isinstance(way, Made) and teacher.endswith(name):
                commands.append(f"{way.command}   # {way.differs}")
                overrides += way.overrides
    if commands:
        print(f"\n{recipe} without what nobody distributes (its numbers change with the inputs):")
        for line in [*commands, f"./launch.sh study {recipe} {' '.join(overrides)}"]:
            print(f"  {line}")
