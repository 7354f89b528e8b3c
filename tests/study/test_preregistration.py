"""What a study promises is written down before its first step, looks are noted, and what departs from it is shown."""

import json
import shutil

import pytest
import study_on_disk
from study_on_disk import ARMS, study_recipe, write_study
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import comparisons, preregistration, results
from kd_megatron.analysis.fitness import objections
from kd_megatron.files import records
from kd_megatron.machine import facts
from kd_megatron.recipe import recipe_yaml
from kd_megatron.report import watch
from kd_megatron.report.publish import publish
from kd_megatron.report.study.page import write_report
from kd_megatron.study import journal, layout, registration, runner
from kd_megatron.study.claim import claim_study

TWO = {name: ARMS[name] for name in ("scratch", "minilm")}
PROTOCOL = {"measure": "score", "arms": ["minilm"], "students": 3, "smallest_effect": 0.5, "stopping": "once, at 3"}
OTHER = TWO | {"minilm": {"objective": "minilm", "num_relation_heads": 24}}


def recipe_of(num_seeds=3, **changes):
    return study_recipe(**{"num_seeds": num_seeds, "arms": TWO, "protocol": PROTOCOL, **changes})


def begin(directory, recipe, redo=()):
    """What `study.begin.begin` does with a directory, less what needs data."""
    claim_study(recipe, directory, redo)
    registration.register(recipe, directory)


def finish(directory, recipe, weights="w"):
    """Make what is missing of the runs and fine-tunings, with exports whose hash follows from ``weights``."""
    for arm in recipe.arms:
        for seed in recipe.seeds:
            run = layout.arm_directory(directory, arm, seed)
            if not run.exists():
                study_on_disk.write_run(run, recipe, arm, seed)
                study_on_disk.edit_summary(run, export_hash=f"{weights}-{arm}-{seed}")
            tuned = layout.finetune_directory(directory, arm, seed)
            if not tuned.exists():
                study_on_disk.write_finetune(tuned, arm, seed)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Registered by its protocol, then finished; not looked at yet; at a clean commit."""
    monkeypatch.setattr(facts, "commit", lambda: "0123456789abcdef")
    monkeypatch.setattr(facts, "uncommitted_changes", lambda: False)
    monkeypatch.setattr(facts, "uncommitted_hash", lambda: None)
    begin(tmp_path / "s", recipe_of())
    finish(tmp_path / "s", recipe_of())
    return tmp_path / "s"


def departures(study):
    return preregistration.departures(results.load(study))


def page(study):
    write_report(study)
    return (study / "report" / "report.md").read_text()


def what(study):
    return [entry["what"] for entry in journal.read(study)]


# --- registration ---------------------------------------------------------------------------------------------


def test_a_promise_is_written_down_with_time_commit_and_a_hash_that_anybody_can_work_out(study):
    (entry,) = registration.read_entries(study)
    assert (entry["commit"], entry["uncommitted_changes"]) == ("0123456789abcdef", False)
    assert entry["time"].endswith("+00:00")
    assert (entry["begun"], entry["looks"]) == ([], 0)
    assert entry["sha256"] == registration.sha256(entry["promise"])
    assert entry["promise"]["protocol"]["stopping"] == "once, at 3"
    assert entry["promise"]["seeds"] == [0, 1, 2]
    assert {"arms", "budget", "data", "training", "validation", "tuning", "finetune"} <= entry["promise"].keys()
    assert not {"description", "notes", "output"} & entry["promise"].keys()


def test_words_change_no_promise_and_the_first_entry_is_never_overwritten(study):
    first = registration.read_entries(study)
    begin(study, recipe_of(description="other", notes=["more"]))
    assert registration.read_entries(study) == first
    begin(study, recipe_of(protocol=PROTOCOL | {"students": 4}))
    entries = registration.read_entries(study)
    assert entries[:1] == first
    assert entries[1]["begun"] == [f"{arm}/{seed}" for arm in ("minilm", "scratch") for seed in range(3)]
    assert entries[1]["promise"]["protocol"]["students"] == 4


def test_a_key_that_a_later_version_adds_changes_no_promise(study):
    registered = json.loads((study / "registered.json").read_text())
    del registered["entries"][0]["promise"]["training"]["warmup_min_steps"]
    (study / "registered.json").write_text(json.dumps(registered))
    registration.register(recipe_of(), study)
    assert len(registration.read_entries(study)) == 1


def test_where_data_lies_is_no_part_of_the_promise():
    there, here = (recipe_of(data={"shards": [{"path": f"{place}/data/wiki"}]}) for place in ("/there", "/srv/here"))
    assert registration.promise(there) == registration.promise(here)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A tuned study of two arms, run for real."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    recipe = tiny_study(
        inputs,
        budget={"tokens": 4 * 8 * 16},
        seeds=[0, 1],
        tuning={"learning_rates": [1e-3, 2e-3], "budget": {"tokens": 2 * 8 * 16}, "most_extensions": 0},
        validation={"probe_steps": 1},
        protocol={"stopping": "one look"},
    )
    arms = {arm: recipe.arms[arm] for arm in ("scratch", "minilm")}
    recipe = recipe.model_copy(update={"arms": arms})
    directory = tmp_path_factory.mktemp("study") / "s"
    runner.run_study(recipe, directory, write_report)
    return recipe, directory


def test_a_study_is_registered_before_the_first_step_of_any_run_or_trial(real):
    _, directory = real
    (entry,) = registration.read_entries(directory)
    assert (entry["begun"], entry["looks"]) == ([], 0)
    written = (directory / "registered.json").stat().st_mtime_ns
    begun = [path.stat().st_mtime_ns for path in directory.rglob("recipe.yaml")]
    assert len(begun) == 2 * 2 + 2 * 2
    assert written < min(begun)


def test_a_study_notes_the_look_at_its_end_once_with_the_exports_it_showed(real):
    recipe, directory = real
    (look,) = journal.read(directory)
    for student in look["students"]:
        run = layout.arm_directory(directory, student["arm"], student["seed"])
        assert student["export"] == json.loads((run / "summary.json").read_text())["export_hash"]
    assert len(look["students"]) == 4
    runner.run_study(recipe, directory, write_report)
    assert journal.read(directory) == [look]
    assert "Nothing departed" in page(directory) or "no commit has" in page(directory)


def test_a_student_that_is_made_anew_alike_is_no_second_try_and_another_one_is(real, tmp_path):
    recipe, directory = real
    study = shutil.copytree(directory, tmp_path / "s")
    shutil.rmtree(layout.arm_directory(study, "scratch", 1))
    runner.run_study(recipe, study, write_report)
    assert preregistration.trained_again(results.load(study)) == {}
    arms = recipe.arms | {"minilm": recipe.arms["minilm"] | {"num_relation_heads": 2}}
    runner.run_study(recipe.model_copy(update={"arms": arms}), study, write_report, ["minilm"])
    assert what(study)[-2:] == ["redo", "look"]
    text = (study / "report" / "report.md").read_text()
    assert "No winner is named by the held-out MLM loss (probe). Seen before: minilm (seeds 0, 1) were trained" in text
    assert "arms.minilm.num_relation_heads was 4, became 2" in text
    assert "Trained again after a look: minilm (seeds 0, 1)." in text


# --- looks and reruns -------------------------------------------------------------------------------------------


def test_a_study_as_promised_has_no_departure(study):
    text = page(study)
    assert "What was promised" in text
    assert "Primary measure: mean score. Primary contrasts: minilm against scratch." in text
    assert "Verdicts are given at 3 students of each arm." in text
    assert "The smallest effect of interest is 0.5 points." in text
    (entry,) = registration.read_entries(study)
    assert f"at commit 0123456789ab (clean); sha256 of the promise: {entry['sha256']}" in text
    assert "Nothing departed from it." in text
    assert what(study) == ["look"]
    assert not objections(results.load(study), "score")


def test_the_same_look_is_noted_once_and_a_watched_study_is_looked_at(study):
    write_report(study)
    write_report(study)
    assert what(study) == ["look"]
    (study / "journal.jsonl").unlink()
    watch.watch(study, every_seconds=0.01)
    assert what(study) == ["look"]


@pytest.mark.parametrize("protocol", [PROTOCOL, None])
def test_seeds_done_again_after_a_look_take_every_verdict_away(study, protocol):
    if protocol is None:
        (study / "registered.json").unlink()
        (study / "study.yaml").write_text(recipe_yaml.dump(recipe_of(protocol=None).model_dump(mode="json")))
        registration.register(recipe_of(protocol=None), study)
    write_report(study)
    verdicts = {one.verdict for one in comparisons.declared(results.load(study))}
    assert "seen before: none" not in verdicts
    assert "better" in verdicts or protocol is None  # three students are too few for a verdict that nobody promised
    edited = recipe_of(arms=OTHER, protocol=protocol)
    begin(study, edited, ["minilm", "finetune"])
    finish(study, edited, "other")
    text = page(study)
    assert "Seen before: minilm (seeds 0, 1, 2) were trained again after a report had shown their results" in text
    found = results.load(study)
    for quantity, task in (("score", None), ("probe_loss", None), ("own_loss", None), ("task", "CoLA")):
        assert objections(found, quantity, task)[0].word == "seen before"
    assert {one.verdict for one in comparisons.declared(found)} == {"seen before: none"}


def test_a_redo_before_any_look_takes_nothing_away(study):
    edited = recipe_of(arms=OTHER)
    begin(study, edited, ["minilm"])
    finish(study, edited, "other")
    write_report(study)
    assert what(study) == ["redo", "look"]
    assert not objections(results.load(study), "score")


def test_another_export_than_the_one_that_was_shown_is_seen_without_a_redo(study):
    write_report(study)
    study_on_disk.edit_summary(layout.arm_directory(study, "scratch", 1), export_hash="another")
    assert preregistration.trained_again(results.load(study)) == {"scratch": [1]}
    write_report(study)
    assert preregistration.trained_again(results.load(study)) == {"scratch": [1]}


def test_another_score_than_the_one_that_was_shown_is_seen_without_a_redo(study):
    write_report(study)
    assert preregistration.finetuned_again(results.load(study)) == {}
    study_on_disk.plant_average(layout.finetune_directory(study, "scratch", 0), 0.7)
    found = results.load(study)
    assert preregistration.finetuned_again(found) == {"scratch": [0]}
    assert [one.word for one in objections(found, "score")] == ["seen before"]
    assert objections(found, "probe_loss") == []


def test_a_look_that_a_crash_tore_is_left_out_and_the_next_one_begins_on_a_line_of_its_own(study):
    (study / "journal.jsonl").write_text('{"what": "look", "time": "20')
    assert journal.read(study) == []
    write_report(study)
    assert what(study) == ["look"]


def test_tuning_that_is_edited_after_a_look_counts_for_all_arms(study):
    write_report(study)
    tuned = recipe_of(tuning={"learning_rates": [1e-3], "budget": {"flops": 1e12}})
    begin(study, tuned, ["scratch", "minilm"])
    assert preregistration.trained_again(results.load(study)) == {"scratch": [0, 1, 2], "minilm": [0, 1, 2]}


def test_fine_tunings_done_again_after_a_look_take_verdicts_on_scores_away(study):
    write_report(study)
    grid = {**study_on_disk.recipe_data()["finetune"], "grid": {"learning_rates": [1e-5], "batch_sizes": [32]}}
    begin(study, recipe_of(finetune=grid), ["finetune"])
    finish(study, recipe_of(finetune=grid))
    text = page(study)
    assert "were fine-tuned again after a report had shown their scores" in text
    found = results.load(study)
    assert [bool(objections(found, quantity)) for quantity in ("score", "task", "probe_loss")] == [True, True, False]


# --- departures ---------------------------------------------------------------------------------------------------


def test_every_planted_departure_is_named(study, monkeypatch):
    write_report(study)
    grown = recipe_of(num_seeds=4, arms=ARMS, protocol=PROTOCOL | {"stopping": "when it is good"}, notes=[])
    begin(study, grown)
    shutil.rmtree(layout.arm_directory(study, "scratch", 2))
    said = " ".join(departures(study))
    assert "The protocol was edited on " in said
    assert "(protocol.stopping)" in said
    assert "Promised and without a result: scratch (seed 2)." in said
    assert "Arms that were added: vanilla_kd, tinybert." in said
    assert "Seeds 3 were added after a look at the results. The rule for stopping was: once, at 3" in said
    assert "Verdicts were promised at 3 students of each arm; there are 2." in said
    assert "departures from the protocol: see the section 'What was promised'" in page(study)


def test_a_protocol_after_the_first_step_is_recorded_as_such(study):
    (study / "registered.json").unlink()
    registration.register(recipe_of(protocol=None), study)
    write_report(study)
    begin(study, recipe_of())
    assert [bool(entry["promise"]["protocol"]) for entry in registration.read_entries(study)] == [False, True]
    said = departures(study)[0]
    assert "after the first step of minilm/0, minilm/1" in said
    assert "1 look at its results" in said


def test_a_protocol_that_is_edited_before_the_first_step_departs_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "uncommitted_changes", lambda: False)
    monkeypatch.setattr(facts, "uncommitted_hash", lambda: None)
    begin(tmp_path / "s", recipe_of(protocol=None))
    begin(tmp_path / "s", recipe_of(protocol=PROTOCOL | {"students": 9}))
    begin(tmp_path / "s", recipe_of())
    finish(tmp_path / "s", recipe_of())
    assert departures(tmp_path / "s") == []


def test_code_with_changes_and_a_look_before_the_end_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "uncommitted_changes", lambda: True)
    monkeypatch.setattr(facts, "uncommitted_hash", lambda: "feedbeef")
    begin(tmp_path / "s", recipe_of())
    finish(tmp_path / "s", recipe_of(num_seeds=1))
    write_report(tmp_path / "s")
    finish(tmp_path / "s", recipe_of())
    text = page(tmp_path / "s")
    assert "The code had changes at registration that no commit has (their hash: feedbeef)." in text
    assert "looked at before the end: 1 report while promised students were not finished" in text
    assert "of 2 of 6 students" in text


def test_seeds_after_a_look_are_a_caveat_without_a_protocol(tmp_path):
    begin(tmp_path / "s", recipe_of(protocol=None))
    finish(tmp_path / "s", recipe_of())
    write_report(tmp_path / "s")
    begin(tmp_path / "s", recipe_of(num_seeds=4, protocol=None))
    text = page(tmp_path / "s")
    assert "Seeds 3 were added after a look at the results, and no protocol says when to stop" in text
    assert "What was promised" not in text
    assert "Registered 20" in text


def test_a_journal_that_lost_its_looks_is_named(study):
    write_report(study)
    begin(study, recipe_of(num_seeds=4))
    (study / "journal.jsonl").unlink()
    assert "lacks 1 look that were counted: it was altered" not in page(study)  # this report is a look again
    (study / "journal.jsonl").unlink()
    text = " ".join(preregistration.departures(results.load(study)))
    assert "added after a look" in text
    assert preregistration.lost_looks(results.load(study)) == 1


def test_an_older_study_has_one_caveat_and_keeps_its_verdicts(tmp_path):
    write_study(tmp_path / "s", recipe_of(protocol=None))
    text = page(tmp_path / "s")
    assert text.count("is not recorded from the start") == 1
    assert not objections(results.load(tmp_path / "s"), "score")
    text = page(write_study(tmp_path / "late", recipe_of()))
    assert "When the protocol was written is not recorded" in text


# --- packed -------------------------------------------------------------------------------------------------------


def test_a_packed_study_carries_both_and_is_never_written_to_but_by_its_report(study, tmp_path):
    write_report(study)
    edited = recipe_of(arms=OTHER)
    begin(study, edited, ["minilm"])
    finish(study, edited, "other")
    publish(study, tmp_path / "packed")
    assert what(study) == ["look", "redo", "look"]
    packed = json.loads((tmp_path / "packed" / "raw.json").read_text())["studies"][0]
    assert [entry["what"] for entry in packed["journal.jsonl"]] == ["look", "redo", "look"]
    for entry in packed["registered.json"]["entries"]:
        assert entry["sha256"] == registration.sha256(entry["promise"])
    before = {path: path.read_bytes() for path in (tmp_path / "packed").rglob("*") if path.is_file()}
    assert "Seen before: minilm" in (tmp_path / "packed" / "report.md").read_text()
    publish(tmp_path / "packed")
    assert {path: path.read_bytes() for path in before} == before
    assert not list((tmp_path / "packed").rglob("journal.jsonl"))


def test_lines_are_whole_whatever_tore_the_last_one(tmp_path):
    path = tmp_path / "j.jsonl"
    records.append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"torn": ')
    records.append_line(path, {"b": 2})
    assert records.read_lines(path) == [{"a": 1}, {"b": 2}]
