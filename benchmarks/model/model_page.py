"""The tables of a modelled step, for the console and for a page. Every one of them says that it is modelled."""

from typing import Any

from benchmarks.rows import markdown_table

Table = tuple[list[str], list[list[str]]]  # heads, lines


def title(record: dict[str, Any]) -> str:
    """What was modelled."""
    batch = record["batch"]
    return (
        f"{record['recipe']}, modelled, not measured: {record['device']}, {batch['precision']}, {batch['sequences']} "
        f"sequences of {batch['length']} a step, {batch['micro_batch_size']} at a time"
    )


def spread(record: dict[str, Any]) -> str:
    """How much more efficient one arm's code is modelled to be than another's."""
    return f"Modelled MFU differs by {100 * record['spread_of_mfu']:.1f} points over the arms."


def arms(record: dict[str, Any]) -> Table:
    """A line for each arm."""
    heads = ["arm", "ms", "MFU", "FLOP bound", "times bound", "speed", "at equal MFU", "teacher ms", "launches"]
    return heads, [
        [
            arm["arm"],
            f"{arm['modelled_ms']:.1f}",
            f"{arm['mfu']:.1%}",
            f"{arm['flop_bound_ms']:.1f}",
            f"{arm['times_bound']:.2f}",
            f"{arm['speed']:.2f}x",
            f"{arm['speed_at_equal_mfu']:.2f}x",
            f"{arm['teacher_ms']:.1f}",
            f"{arm['launches']:,}",
        ]
        for arm in record["arms"]
    ]


def parts(record: dict[str, Any]) -> Table:
    """A line for each part of the step, in modelled milliseconds of each arm."""
    arms = record["arms"]
    names = dict.fromkeys(part for arm in arms for part in arm["parts_ms"])
    lines = [[part, *(f"{arm['parts_ms'].get(part, 0.0):.1f}" for arm in arms)] for part in names]
    return ["part", *(arm["arm"] for arm in arms)], lines


def top(arm: dict[str, Any]) -> Table:
    """A line for each of an arm's operations that take most."""
    heads = ["part", "operation", "of", "limit", "times", "ms"]
    return heads, [
        [
            *(str(one[name]) for name in ("part", "operation", "shape", "limit")),
            f"{one['times']:,}",
            f"{one['modelled_ms']:.2f}",
        ]
        for one in arm["top"]
    ]


def start_of(source: str) -> str:
    """The line of a page that opens the place of the file ``source``."""
    return f"<!-- model of {source} -->"


def render(record: dict[str, Any]) -> str:
    """Both tables, what they rest on, and what they were modelled with."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    changed = " with uncommitted changes" * record["uncommitted_changes"]
    lines = "\n".join(f"- {line}" for line in record["assumptions"])
    return "\n".join(
        [
            markdown_table(arms(record)[0], 1, arms(record)[1], f"{title(record)}. {spread(record)}"),
            markdown_table(parts(record)[0], 1, parts(record)[1], "Modelled milliseconds of each part of the step."),
            lines,
            f"\n{record['date']}, commit {record['commit'][:12]}{changed}; {versions}.\n",
        ]
    )
