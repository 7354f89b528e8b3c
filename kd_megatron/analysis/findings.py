"""One check over all runs, as the report prints it, and the commonest check: is a value the same in all of them?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One check over all runs."""

    check: str
    passed: bool
    detail: str


def same(check: str, values: Mapping[str, Any]) -> Finding:
    """Whether all ``values`` (name of a run -> what it recorded) are shown alike."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(short(value), []).append(name)
    if len(groups) == 1:
        return Finding(check, True, f"the same in all {len(values)} runs: {next(iter(groups))}")
    return Finding(check, False, "; ".join(f"{value}: {', '.join(names)}" for value, names in groups.items()))


def summed_up(check: str, findings: Mapping[str, Finding], of: str) -> list[Finding]:
    """One finding for all that passed of ``findings`` (by key), and each that did not; ``of`` such as "all 6 runs"."""
    agreeing = [key for key, finding in findings.items() if finding.passed]
    differing = [finding for finding in findings.values() if not finding.passed]
    if not agreeing:
        return differing
    return [Finding(check, True, f"the same in {of}: {', '.join(agreeing)}"), *differing]


def short(value: Any) -> str:
    """A value as a finding shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
