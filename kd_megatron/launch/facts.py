"""What a node says of itself before time is spent, and which node differs from the others."""

import hashlib
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kd_megatron.errors import EnvironmentFault, KdError
from kd_megatron.files.manifest import MANIFEST, read_manifest
from kd_megatron.machine import facts as machine
from kd_megatron.machine import toolchain
from kd_megatron.recipe import config

PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "numpy")
ABSENT = "absent"
DEFAULT_MIN_FREE_GIB = 1.0


def node_name() -> str:
    """What messages call this node: its name in the hostfile, otherwise its host name with its number."""
    number = os.environ.get("CROSS_RANK", os.environ.get("GROUP_RANK"))  # set by deepspeed's launcher, by torchrun
    return os.environ.get("KD_NODE") or socket.gethostname() + (f" (node {number})" if number else "")


def num_nodes() -> int:
    """How many nodes the launcher of this process started: deepspeed's, or torchrun; 1 without one."""
    return int(os.environ.get("CROSS_SIZE", os.environ.get("GROUP_WORLD_SIZE", "1")))


def same_everywhere(command: Sequence[str]) -> dict[str, str]:
    """The facts that have to agree on all nodes, by name: code, versions, recipe and data of ``command``."""
    return {
        "commit": machine.commit(),
        "source code": source_hash(),
        **machine.versions(PACKAGES),
        **recipe_and_data(command),
    }


def source_hash() -> str:
    """A short hash of the Python sources, DeepSpeed settings and launch.sh as they lie there, committed or not."""
    files = [
        *sorted(machine.ROOT.glob("kd_megatron/**/*.py")),
        *sorted(machine.ROOT.glob("data_prep/*.py")),
        *sorted(machine.ROOT.glob("ds_configs/*.json")),
        *machine.ROOT.glob("launch.sh"),
    ]
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(machine.ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def recipe_and_data(command: Sequence[str]) -> dict[str, str]:
    """The hash of the recipe named in ``command``, and the content hash of every shard set that it reads."""
    recipe = next((word for word in command if word.endswith((".yaml", ".yml")) and "=" not in word), None)
    if recipe is None:
        return {}
    if not Path(recipe).is_file():
        return {f"recipe {recipe}": ABSENT}
    facts = {f"recipe {recipe}": hashlib.sha256(Path(recipe).read_bytes()).hexdigest()[:16]}
    overrides = [word for word in command if "=" in word and not word.startswith("-")]
    for directory in shard_directories(recipe, overrides):
        facts[f"data {directory}"] = data_hash(directory)
    return facts


def require_recipe(command: Sequence[str]) -> None:
    """Raise `RecipeError` where the recipe of ``command``, or an override, cannot be read."""
    if command:
        config.read_overridden(command[0], command[1:])


def shard_directories(recipe: str, overrides: Sequence[str]) -> Iterator[str]:
    """The shard sets of a study's recipe; none where it cannot be read: the command itself says what is wrong."""
    try:
        raw = config.read_overridden(recipe, overrides)
        yield from (str(shards["path"]) for shards in raw["data"]["shards"])
    except (KdError, KeyError, TypeError):
        return


def data_hash(directory: str) -> str:
    """The content hash in the manifest of a shard set."""
    if not (Path(directory) / MANIFEST).is_file():
        return ABSENT
    try:
        return read_manifest(directory).content_hash()
    except KdError:
        return "unreadable"


def free_gib() -> float:
    """Free disk space where runs are kept."""
    return shutil.disk_usage(".").free / 2**30


def disk_problems() -> list[str]:
    """A line when less than KD_MIN_FREE_GIB is free."""
    given, free = os.environ.get("KD_MIN_FREE_GIB", ""), free_gib()
    try:
        least = float(given or DEFAULT_MIN_FREE_GIB)
    except ValueError:
        return [f"was given KD_MIN_FREE_GIB={given}, which is no number"]
    return [f"has {free:.1f} GiB of free disk at {Path.cwd()}, less than {least:g}"] if free < least else []


def compiler_problems() -> list[str]:
    """A line where a GPU is, and what Triton compiles for each kernel cannot be compiled."""
    if not toolchain.has_gpu() or (missing := toolchain.problem()) is None:
        return []
    return [f"has a GPU, but {missing}: Triton starts no kernel without it; to fix: {toolchain.FIX}"]


def problems() -> list[str]:
    """All that this node alone can say is wrong with it."""
    return [*disk_problems(), *compiler_problems()]


def differences(nodes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line for each fact in which some nodes differ from the most (of two, from the first), naming the odd ones."""
    lines = []
    for fact in dict.fromkeys(name for facts in nodes.values() for name in facts):
        values = {node: facts.get(fact, ABSENT) for node, facts in nodes.items()}
        counts = Counter(values.values())  # keeps the order of nodes, so that the first one wins a tie
        usual = counts.most_common(1)[0][0]
        others = [node for node, value in values.items() if value == usual]
        them = "the others" if len(others) > 1 else others[0]
        have = "have" if len(others) > 1 else "has"
        lines += [
            f"{node} has {fact} {value}, {them} {have} {usual}" for node, value in values.items() if value != usual
        ]
    return lines


def refuse(lines: Sequence[str]) -> None:
    """Raise one `EnvironmentFault` with all ``lines``, if there are any."""
    if lines:
        raise EnvironmentFault(
            given="preflight: " + "\n  ".join(lines),
            expected="the same code, versions, recipe and data on every node, free disk, and open ports between them",
            fix="bring the nodes named above in line, then run the same command again",
        )
