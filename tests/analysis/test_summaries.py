"""What a report reads of summaries: earlier versions' records are read, and what is needed and absent is named."""

import json

import pytest
import study_on_disk

from kd_megatron.analysis import results, summaries
from kd_megatron.errors import OutputError
from kd_megatron.study.layout import arm_directory, finetune_directory


@pytest.fixture
def study(tmp_path):
    return study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())


def without(directory, *keys):
    """Remove a key, given part by part, from a summary."""
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    section = summary
    for key in keys[:-1]:
        section = section[key]
    del section[keys[-1]]
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    "keys", [("tokens",), ("budget", "limit"), ("ledger", "accounts"), ("validation",)], ids=lambda keys: ".".join(keys)
)
def test_a_key_that_is_needed_is_named_with_its_file(study, keys):
    without(arm_directory(study, "minilm", 1), *keys)
    with pytest.raises(OutputError, match=rf"minilm/seed_1/summary\.json has no {'.'.join(keys)}"):
        results.load(study)


def test_the_score_of_a_task_is_needed(study):
    without(finetune_directory(study, "minilm", 1), "tasks", "CoLA", "mean")
    with pytest.raises(OutputError, match=r"finetune/minilm/seed_1/summary\.json has no tasks\.CoLA\.mean"):
        results.load(study)


def test_what_earlier_versions_did_not_record_is_unknown(study):
    where = arm_directory(study, "minilm", 1)
    without(where, "fingerprint")
    without(where, "teacher")
    without(where, "untrained_parameters")
    found = summaries.finished_run(where)
    assert (found.fingerprint, found.settings, found.teacher, found.branch, found.export_hash) == (None,) * 5
    assert found.untrained_parameters == []
    assert found.budget.calibrated_steps is None
    tuned = summaries.finetuning(finetune_directory(study, "minilm", 1))
    assert (tuned.model_hash, tuned.precision, tuned.tasks["CoLA"].content_hash) == (None,) * 3


def test_an_unfinished_run_has_no_summary(study):
    study_on_disk.edit_summary(arm_directory(study, "minilm", 1), status="running")
    assert summaries.finished_run(arm_directory(study, "minilm", 1)) is None
    assert summaries.finetuning(study) is None
