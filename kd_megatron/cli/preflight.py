"""Check this machine before time is spent, and print what has to be alike on every node of a run.

With ./launch.sh --hosts HOSTFILE preflight RECIPE all nodes are asked over ssh and compared: code, versions, recipe,
data, free disk, and that each reaches every other. Every command with --hosts begins with this check. Exit code 7 when
something does not fit; the message names the node.

  kd-megatron preflight
  kd-megatron preflight recipes/debug.yaml
  kd-megatron preflight recipes/debug.yaml --json
"""

import argparse

HELP = "check this machine, or with --hosts that all nodes agree and reach each other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", nargs="?", help="a recipe, whose data are checked too")
    parser.add_argument("overrides", nargs="*", help="dotted keys of the recipe, such as data.sequence_length=64")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the facts; raises `EnvironmentFault` when the disk is nearly full, or a package or compiler is missing."""
    import json

    from kd_megatron.launch import facts

    command = [args.recipe, *args.overrides] if args.recipe else []
    facts.require_recipe(command)
    same = facts.same_everywhere(command)
    missing = [f"has no {package}" for package in facts.PACKAGES if same[package] == facts.ABSENT]
    facts.refuse([f"this machine {line}" for line in [*facts.problems(), *missing]])
    if args.json:
        print(json.dumps({"node": facts.node_name(), "same": same, "free_gib": round(facts.free_gib(), 1)}))
        return 0
    for name, value in {**same, "free disk": f"{facts.free_gib():.1f} GiB"}.items():
        print(f"{name + ':':<16} {value}")
    return 0
