"""What a run was made of: commit, versions, hardware, data, teacher, first weights. Runs with equal ones compare."""

import json
from pathlib import Path
from typing import Any

from kd_megatron.data.loader import Loader
from kd_megatron.errors import OutputError
from kd_megatron.files import hub
from kd_megatron.files.manifest import weights_hash
from kd_megatron.machine import facts as machine
from kd_megatron.models.taps import Execution
from kd_megatron.objectives.of_the_teacher import owes_the_teacher
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe

FINGERPRINT = "fingerprint.json"
INPUTS = ("data", "tokenizer", "teacher", "begins_from")  # hashes of what a run learns and begins from
THEN = ", then "  # between what a run recorded at one start and at a later one
PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "numpy", "tokenizers")


def fingerprint(
    loader: Loader, teacher_path: str | None, begins_from: str | None, execution: Execution | None = None
) -> dict[str, Any]:
    """Facts of this process and its inputs, as plain data.

    Args:
        begins_from: directory of the model that the student's first weights are of, None when they are random or
            the teacher's.
        execution: how student and teacher run, where they train: the same in all arms, or one of them has slower code.
    """
    facts = machine.facts(PACKAGES)
    facts["hardware"]["num_processes"] = dist.world_size()
    return {
        **facts,
        **({"execution": {"compiled": execution.compile, "attention": execution.attention}} if execution else {}),
        "data": loader.content_hash,
        "tokenizer": loader.tokenizer_sha256,
        "teacher": weights_hash(teacher_path),
        "teacher_source": hub.source_of(teacher_path),
        "begins_from": weights_hash(begins_from),
    }


def going_on(study: StudyRecipe, arm: str, directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """``facts`` of a run that goes on from a checkpoint, with what its earlier starts recorded otherwise.

    Args:
        directory: where its steps so far were trained.

    Returns:
        The same entries; one that changed is the values in their order, such as ``"0123abc, then 4567def"``, so that
        the fairness check finds it.

    Raises:
        OutputError: the run began with other data, tokenizer, teacher or first weights.
    """
    path = directory / FINGERPRINT
    if not path.is_file():
        return facts
    began = json.loads(path.read_text(encoding="utf-8"))
    _refuse_other_inputs(study, arm, directory, began, facts)
    return _joined(began, facts)


def _joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in now.items():
        was = before.get(key, value)
        if isinstance(value, dict) and isinstance(was, dict):
            found[key] = _joined(was, value)
        elif was == value or str(was).endswith(f"{THEN}{value}"):
            found[key] = was
        else:
            found[key] = f"{was}{THEN}{value}"
    return found


def _refuse_other_inputs(
    study: StudyRecipe, arm: str, directory: Path, began: dict[str, Any], facts: dict[str, Any]
) -> None:
    inputs = [key for key in INPUTS if key != "teacher" or owes_the_teacher(study, arm)]
    changed = [key for key in inputs if key in began and began[key] != facts[key]]
    if changed:
        listed = "; ".join(f"{key} was {began[key]}, is {facts[key]}" for key in changed)
        raise OutputError(
            given=f"the run in {directory} goes on from a checkpoint, but its inputs have changed: {listed}",
            expected="the data, tokenizer, teacher and first weights that the run began with (hashes of their content)",
            fix=f"put back what was there before, or remove {directory} and run the same command again: it begins anew",
        )
