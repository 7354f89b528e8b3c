"""What a study promised before its first step, what departed from it, and which results had been seen before.

Read from ``registered.json`` and the journal that a study keeps of itself (`kd_megatron.study.registration` and
`.journal`); studies of earlier versions have neither, and nothing is claimed of them. docs/preregistration.md.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.console.units import counted
from kd_megatron.recipe import diff
from kd_megatron.study import journal, registration
from kd_megatron.study.journal import LOOK, REDO

Entry = dict[str, Any]
Students = dict[str, list[int]]  # arm -> seeds
OF_ITS_OWN = ("seeds", "arms", "protocol")  # keys whose change has a sentence of its own


@once
def registered(results: StudyResults) -> list[Entry]:
    """The promises of the study, oldest first; none where nothing was registered."""
    return registration.read_entries(results.directory)


@once
def noted(results: StudyResults) -> list[Entry]:
    """The study's journal, oldest first."""
    return journal.read(results.directory)


@once
def promised(results: StudyResults) -> Entry | None:
    """The registration that departures are counted from: the last one before the first step of a counted run.

    Where no protocol was registered by then it is the first one that has a protocol; None where there is none.
    """
    in_time = [entry for entry in registered(results) if not entry["begun"]][-1:]
    late = [entry for entry in registered(results) if entry["begun"]]
    return next((entry for entry in [*in_time, *late] if entry["promise"].get("protocol")), None)


@once
def trained_again(results: StudyResults) -> Students:
    """The students that were trained anew after a report had shown them.

    A look showed another export than one before it or than there is now, or a redo moved them aside.
    """
    shown: dict[tuple[str, int], set[str]] = {}
    found: dict[tuple[str, int], None] = {}
    for entry in noted(results):
        for student in entry["students"]:
            key = student["arm"], student["seed"]
            seen = shown.get(key)
            another = student["export"] is not None and seen is not None and bool(seen - {student["export"]})
            if another or (entry["what"] == REDO and seen is not None):
                found[key] = None
            if entry["what"] == LOOK:
                shown.setdefault(key, set()).update({student["export"]} - {None})
    for run in results.all_runs():
        key, now = (run.arm, run.seed), run.summary.export_hash
        if now is not None and shown.get(key, set()) - {now}:
            found[key] = None
    return _by_arm(list(found))


@once
def finetuned_again(results: StudyResults) -> Students:
    """The students whose fine-tunings were done anew after a report had shown their scores.

    A look showed another score of the same weights than there is now or than one before it, or a redo moved them aside.
    """
    now = [
        {"arm": run.arm, "seed": run.seed, "export": run.summary.export_hash, "score": run.finetune.average}
        for run in results.all_runs()
        if run.finetune
    ]
    shown: dict[tuple[str, int], set[tuple[str | None, float | None]]] = {}
    found: dict[tuple[str, int], None] = {}
    for entry in [*noted(results), {"what": LOOK, "students": now}]:
        if entry["what"] == REDO and entry["finetune"]:
            found |= dict.fromkeys(shown)
        for one in entry["students"] if entry["what"] == LOOK else []:
            if one["score"] is not None:
                seen = shown.setdefault((one["arm"], one["seed"]), set())
                if any(export == one["export"] and score != one["score"] for export, score in seen):
                    found[one["arm"], one["seed"]] = None
                seen.add((one["export"], one["score"]))
    return _by_arm(list(found))


@once
def grown_after_a_look(results: StudyResults) -> list[int]:
    """The seeds that were added to the recipe when a report had shown students already."""
    entries = registered(results)
    found: dict[int, None] = {}
    for before, entry in itertools.pairwise(entries):
        if entry["looks"]:
            found |= dict.fromkeys(seed for seed in entry["promise"]["seeds"] if seed not in before["promise"]["seeds"])
    return list(found)


@once
def lost_looks(results: StudyResults) -> int:
    """How many looks a registration counted that the journal no longer has."""
    there = sum(entry["what"] == LOOK for entry in noted(results))
    return max(0, max((entry["looks"] for entry in registered(results)), default=0) - there)


@once
def departures(results: StudyResults) -> list[str]:
    """Every departure from the protocol, a sentence each; none without a protocol."""
    entry = promised(results)
    if entry is None:
        late = "When the protocol was written is not recorded: this study was begun without a registration."
        return [late] if results.recipe.protocol else []
    entries = registered(results)
    after = entries[entries.index(entry) + 1 :]
    return [
        *_written_late(entry, after),
        *_code(entry),
        *_keys(entry, after),
        *_arms_and_seeds(results, entry, after),
        *_looks(results, entry),
        *_again(results),
    ]


def _written_late(entry: Entry, after: list[Entry]) -> Iterator[str]:
    if entry["begun"]:
        looks = f" and {counted(entry['looks'], 'look')} at its results" if entry["looks"] else ""
        yield (
            f"The protocol was written on {_day(entry)}, after the first step of {_listed(entry['begun'])}{looks}: "
            "what it promises may have been chosen by what was found."
        )
    last = entry
    for one in after:
        if one["promise"].get("protocol") != last["promise"]["protocol"]:
            changed = registration.changes(last["promise"], one["promise"])
            keys = ", ".join(change.key for change in changed if change.key.startswith("protocol"))
            yield f"The protocol was edited on {_day(one)}, after the first step of {_listed(one['begun'])} ({keys})."
        if one["promise"].get("protocol"):
            last = one


def _code(entry: Entry) -> Iterator[str]:
    if entry["uncommitted_changes"] or entry["uncommitted_hash"]:
        of_it = f" (their hash: {entry['uncommitted_hash']})" if entry["uncommitted_hash"] else ""
        yield f"The code had changes at registration that no commit has{of_it}."


def _keys(entry: Entry, after: list[Entry]) -> Iterator[str]:
    """Keys that are not as they were promised, each with its last value."""
    found: dict[tuple[str, str], diff.KeyChange] = {}
    for one in after:
        for change in registration.changes(entry["promise"], one["promise"]):
            is_new = change.arm and change.arm not in entry["promise"]["arms"]
            if change.key.split(".")[0] not in OF_ITS_OWN or (change.arm and not is_new):
                found[change.key, change.arm] = change
    if found:
        listed = "; ".join(f"{one.key} was {one.was!r}, became {one.now!r}" for one in found.values())
        yield f"Changed since the registration: {listed}."


def _arms_and_seeds(results: StudyResults, entry: Entry, after: list[Entry]) -> Iterator[str]:
    """Students that were promised and have no result, and arms and seeds that were not promised."""
    promise = entry["promise"]
    absent = [
        (arm, seed) for arm in promise["arms"] for seed in promise["seeds"] if seed not in results.runs.get(arm, {})
    ]
    if absent:
        yield f"Promised and without a result: {students_in_words(_by_arm(absent))}."
    if arms := [arm for arm in results.recipe.arms if arm not in promise["arms"]]:
        yield f"Arms that were added: {', '.join(arms)}."
    looked = grown_after_a_look(results)
    if looked:
        yield (
            f"Seeds {_listed(looked)} were added after a look at the results. The rule for stopping was: "
            f"{promise['protocol']['stopping']} (optional stopping: no interval knows of it)."
        )
    if seeds := [seed for seed in results.recipe.seeds if seed not in (*promise["seeds"], *looked)]:
        yield f"Seeds that were added: {_listed(seeds)}."
    number, wanted = min((len(results.runs[arm]) for arm in results.arms), default=0), promise["protocol"]["students"]
    if wanted is not None and number != wanted:
        yield f"Verdicts were promised at {counted(wanted, 'student')} of each arm; there are {number}."


def _looks(results: StudyResults, entry: Entry) -> Iterator[str]:
    """Reports that were written before all promised students were finished."""
    promise = entry["promise"]
    all_of_them = {(arm, seed) for arm in promise["arms"] for seed in promise["seeds"]}
    tuned = promise["finetune"] is not None
    early = []
    for one in (one for one in noted(results) if one["what"] == LOOK):
        done = {(student["arm"], student["seed"]) for student in one["students"] if student["finetuned"] or not tuned}
        if not all_of_them <= done:
            early.append(one)
    if early:
        there = len(early[0]["students"])
        yield (
            f"The results were looked at before the end: {counted(len(early), 'report')} while promised students were "
            f"not finished, the first on {_day(early[0])}, of {there} of {len(all_of_them)} students."
        )


def _again(results: StudyResults) -> Iterator[str]:
    if again := trained_again(results):
        yield f"Trained again after a look: {students_in_words(again)}."
    if again := finetuned_again(results):
        yield f"Fine-tuned again after a look: {students_in_words(again)}."


def students_in_words(students: Students) -> str:
    """``"scratch (seeds 0, 1), minilm (seed 0)"``."""
    words = (f"{arm} (seed{'s' * (len(seeds) > 1)} {_listed(seeds)})" for arm, seeds in students.items())
    return ", ".join(words)


def _by_arm(students: list[tuple[str, int]]) -> Students:
    found: Students = {}
    for arm, seed in students:
        found.setdefault(arm, []).append(seed)
    return {arm: sorted(seeds) for arm, seeds in found.items()}


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _day(entry: Entry) -> str:
    return str(entry["time"]).replace("T", " ").replace("+00:00", " UTC")
