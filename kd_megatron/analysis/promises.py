"""Whether a study kept to what it promised, and whether its students were made again after somebody had looked."""

from collections.abc import Mapping
from typing import Any

from kd_megatron.analysis.once import once
from kd_megatron.analysis.results import StudyResults
from kd_megatron.recipe.diff import flatten
from kd_megatron.study.journal import promise


@once
def made_again(results: StudyResults) -> list[str]:
    """Students, ``ARM/SEED``, of which a look at the results saw others of the same seed."""
    now = {run.name: run.summary.export_hash for run in results.all_runs()}
    return _differing(results, "students", now)


@once
def tuned_again(results: StudyResults) -> list[str]:
    """Students whose fine-tuning scored otherwise when somebody looked."""
    now = {run.name: run.finetune.average for run in results.all_runs() if run.finetune}
    return _differing(results, "scores", now)


def _differing(results: StudyResults, key: str, now: Mapping[str, object]) -> list[str]:
    """The names that some look recorded with another value than there is now."""
    seen = {(name, was) for look in results.looks for name, was in look[key].items() if was is not None}
    return sorted({name for name, was in seen if now.get(name) not in (None, was)})


def protocols(results: StudyResults) -> list[dict[str, Any]]:
    """The registered promises that have a protocol, the first one first."""
    return [entry for entry in results.registered if entry["promise"]["protocol"]]


@once
def departures(results: StudyResults) -> list[str]:
    """In sentences, how the study departed from its protocol; empty where it has none, or kept to it."""
    if results.recipe.protocol is None:
        return []
    promised = protocols(results)
    if not promised:
        return ["The study has a protocol, and no record of when it was written."]
    first, said = promised[0], []
    if first["after_the_first_step"]:
        said.append("The protocol was written after the first step.")
    if first["uncommitted_changes"]:
        said.append("The code differed from its commit when the protocol was registered.")
    was, now = flatten(first["promise"]), flatten(promise(results.as_given or results.recipe))
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    then = "when the protocol was registered"
    said += [f"{key} was {was.get(key)!r} {then}, and is {now.get(key)!r}." for key in changed]
    if early := _early_looks(results):
        said.append(f"Results were looked at before all students were finished, first on {early}.")
    return said


def _early_looks(results: StudyResults) -> str | None:
    """When the first look was that did not see all students; None where there was none."""
    number = len(results.recipe.arms) * len(results.recipe.seeds)
    return next((look["time"] for look in results.looks if len(look["students"]) < number), None)


def added_after_a_look(results: StudyResults) -> list[int]:
    """Seeds that the recipe gained after somebody had looked at results, in order."""
    if not results.looks or not results.registered:
        return []
    looked, first = results.looks[0]["time"], {*results.registered[0]["promise"]["seeds"]}
    later = [entry for entry in results.registered if entry["time"] > looked]
    return sorted({seed for entry in later for seed in entry["promise"]["seeds"]} - first)
