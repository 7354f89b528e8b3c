"""Promises come before the first step, looks are recorded, and students that are made again after one are named."""

import json

import pytest
import study_on_disk

from kd_megatron.analysis import comparisons, promises, results
from kd_megatron.analysis.fitness import objections
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.publish import publish
from kd_megatron.report.study.page import write_report
from kd_megatron.study import journal
from kd_megatron.study.begin import begin

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "vanilla_kd")}
PROMISED = {"measure": "score", "students": 3}


def recipe(**changes) -> StudyRecipe:
    return study_on_disk.study_recipe(**{"arms": ARMS, "protocol": PROMISED, "budget": {"tokens": 10**9}, **changes})


@pytest.fixture
def study(tmp_path):
    """A finished study that was registered before it began."""
    directory = tmp_path / "s"
    begin(recipe(), directory)
    assert not (directory / "arms").exists()
    study_on_disk.write_study(tmp_path / "made", recipe())
    for part in ("arms", "finetune"):
        (tmp_path / "made" / part).rename(directory / part)
    return directory


def page(directory):
    write_report(directory)
    return (directory / "report" / "report.md").read_text(encoding="utf-8")


def test_a_study_that_kept_its_protocol_says_so(study):
    (entry,) = journal.registered(study)
    assert entry["promise"]["protocol"]["measure"] == "score"
    assert entry["promise"]["seeds"] == [0, 1, 2]
    assert len(entry["sha256"]) == 64
    assert not entry["after_the_first_step"]
    begin(recipe(description="other words"), study)
    assert len(journal.registered(study)) == 1  # words are no promise
    said = page(study)
    assert "Primary: average, vanilla_kd against scratch." in said
    assert f"sha256 {entry['sha256'][:12]}" in said
    if not entry["uncommitted_changes"]:
        assert "No departure from the protocol was recorded." in said


def test_a_protocol_after_the_first_step_is_one(study):
    (study / "registered.json").unlink()
    begin(recipe(), study)
    assert "The protocol was written after the first step." in page(study)
    (study / "registered.json").unlink()
    assert "no record of when it was written" in page(study)


def test_what_was_edited_since_is_named_and_the_first_promise_stays(study):
    edited = PROMISED | {"measure": "probe_loss"}
    begin(recipe(protocol=edited), study)
    first, second = journal.registered(study)
    assert [one["promise"]["protocol"]["measure"] for one in (first, second)] == ["score", "probe_loss"]
    assert second["after_the_first_step"]
    assert "protocol.measure was 'score' when the protocol was registered, and is 'probe_loss'." in page(study)


def test_a_look_is_recorded_once_and_an_early_one_is_a_departure(study, tmp_path):
    run = study / "arms" / "scratch" / "seed_2"
    run.rename(tmp_path / "later")
    page(study)
    (early,) = journal.journal(study)
    assert len(early["students"]) == 5
    (tmp_path / "later").rename(run)
    assert "Results were looked at before all students were finished" in page(study)
    page(study)
    assert [len(look["students"]) for look in journal.journal(study)] == [5, 6]


def test_students_that_are_made_again_after_a_look_take_every_verdict_away(study):
    study_on_disk.edit_summary(study / "arms" / "vanilla_kd" / "seed_1", export_hash="one")
    assert not objections(results.load(study), "score")
    page(study)
    study_on_disk.edit_summary(study / "arms" / "vanilla_kd" / "seed_1", export_hash="another")
    found = results.load(study)
    assert promises.made_again(found) == ["vanilla_kd/1"]
    assert {one.verdict for one in comparisons.declared(found)} == {"seen before: none"}
    assert "vanilla_kd/1 was trained again after somebody had looked" in page(study)


def test_fine_tunings_that_are_made_again_after_a_look_take_verdicts_on_scores_away(study):
    page(study)
    path = study / "finetune" / "scratch" / "seed_0" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"average": 0.123}))
    found = results.load(study)
    assert promises.tuned_again(found) == ["scratch/0"]
    assert [one.word for one in objections(found, "score")] == ["seen before"]
    assert objections(found, "probe_loss") == []


def test_seeds_that_are_added_after_a_look_are_named(study):
    page(study)
    begin(recipe(num_seeds=4), study)
    looks, entries = study / "journal.jsonl", study / "registered.json"
    looks.write_text(looks.read_text().replace('"time": "20', '"time": "10'))  # the clock has seconds
    assert promises.added_after_a_look(results.load(study)) == [3]
    assert len(json.loads(entries.read_text())) == 2
    assert "Seeds 3 were added after somebody had looked at results" in page(study)


def test_a_packed_study_carries_both_and_its_report_writes_neither(study, tmp_path):
    page(study)
    publish(study, tmp_path / "packed")
    before = {path: path.read_bytes() for path in (tmp_path / "packed").rglob("*") if path.is_file()}
    assert "Registered on" in (tmp_path / "packed" / "report.md").read_text()
    publish(tmp_path / "packed")
    assert {path: path.read_bytes() for path in before} == before
    raw = json.loads((tmp_path / "packed" / "raw.json").read_text())["studies"][0]
    assert {"registered.json", "journal.jsonl"} <= raw.keys()


def test_a_torn_line_of_the_journal_is_left_out(study):
    page(study)
    with (study / "journal.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert len(journal.journal(study)) == 1
