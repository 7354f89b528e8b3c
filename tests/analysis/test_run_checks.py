"""docs/fairness.md, clauses 2 and 5: what the runs recorded is compared, and a difference is flagged."""

import json
import shutil

import pytest
import study_on_disk

from kd_megatron.analysis import results
from kd_megatron.analysis.run_checks import fingerprint_differences, run_findings, unfair_checks
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.effective import run_recipe


@pytest.fixture
def study(tmp_path):
    return study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=2))


def failed(study):
    return {finding.check: finding.detail for finding in run_findings(results.load(study)) if not finding.passed}


def change(study, arm, **changes):
    study_on_disk.edit_summary(study / "arms" / arm / "seed_1", **changes)


def summary_of(study, arm):
    return json.loads((study / "arms" / arm / "seed_1" / "summary.json").read_text())


def test_equal_runs_pass(study):
    assert failed(study) == {}
    assert len(run_findings(results.load(study))) == 5


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("data", "0badf00d"),
        ("commit", "other"),
        ("versions", {"torch": "2.12.0", "python": "3.11.2"}),
        ("hardware", {"device": "cuda", "num_cores": 2}),
    ],
)
def test_another_fingerprint_is_flagged(study, entry, value):
    change(study, "minilm", fingerprint=summary_of(study, "minilm")["fingerprint"] | {entry: value})
    (check,) = failed(study)
    assert check.startswith(f"fingerprint: {entry}")
    assert "minilm/1" in failed(study)[check]


@pytest.mark.parametrize("change_to", [{"unit": "tokens"}, {"limit": 7e13}, {"charge": ["student"]}])
def test_another_budget_is_flagged(study, change_to):
    change(study, "minilm", budget=summary_of(study, "minilm")["budget"] | change_to)
    assert "budget unit, limit and charged accounts" in failed(study)


@pytest.mark.parametrize("spent", [6.0e13 * 0.99, 6.0e13 * 1.02])
def test_an_underspent_or_overspent_budget_is_flagged(study, spent):
    # a step of minilm costs 8192 x 4.7e7 = 3.85e11: 0.6 % of the budget
    change(study, "minilm", budget=summary_of(study, "minilm")["budget"] | {"spent": spent})
    assert "minilm/1" in failed(study)["equal budgets"]


def test_another_size_is_flagged(study):
    change(study, "tinybert", parameters=1)
    assert "tinybert/1" in failed(study)["student parameters"]


def test_a_run_that_was_given_something_else_than_the_recipe_says_is_flagged(study):
    recipe = results.load(study).recipe
    for arm in recipe.arms:
        settings = run_recipe(recipe, arm, 1).model_dump(mode="json", include={"arms", "training", "budget"})
        if arm == "minilm":
            settings["training"]["warmup_fraction"] = 0.12
            settings["arms"][arm]["num_relation_heads"] = 24
        change(study, arm, settings=settings)
    assert failed(study) == {
        "settings as the recipe says": "minilm/1 had arms.minilm.num_relation_heads 24, not 12; "
        "minilm/1 had training.warmup_fraction 0.12, not 0.06"
    }


def test_calibrated_runs_took_their_steps_whatever_the_clock_said(study):
    for arm in ("scratch", "minilm"):
        budget = summary_of(study, arm)["budget"] | {"spent": 9e13}
        change(study, arm, budget=budget | {"calibrated": {"steps": summary_of(study, arm)["steps"]}})
    assert failed(study) == {}
    change(study, "minilm", steps=summary_of(study, "minilm")["steps"] - 1)
    assert "minilm/1 took" in failed(study)["equal budgets"]


def test_what_tuning_was_charged_counts_towards_the_budget(tmp_path):
    tuning = {"learning_rates": [1e-3], "budget": {"flops": 1e13}, "charged": True}
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=2, tuning=tuning))
    spent = {"scratch": 1.1e13, "vanilla_kd": 1.2e13, "minilm": 1.0e13, "tinybert": 1.0e13}
    (directory / "tuning.json").write_text(json.dumps({"chosen": {}, "charged": spent, "at_edge": {}, "trials": {}}))
    assert "budget unit, limit and charged accounts" in failed(directory)  # as if nothing had been taken off
    for arm, amount in spent.items():
        for seed in (0, 1):
            run = directory / "arms" / arm / f"seed_{seed}"
            budget = json.loads((run / "summary.json").read_text())["budget"]
            left = budget["limit"] - amount
            study_on_disk.edit_summary(run, budget=budget | {"limit": left, "spent": left})
    assert failed(directory) == {}


def test_missing_seeds_are_flagged(study):
    shutil.rmtree(study / "arms" / "tinybert" / "seed_1")
    assert "tinybert: 0" in failed(study)["seeds"]


def test_flags_reach_the_report(study):
    change(study, "minilm", fingerprint=summary_of(study, "minilm")["fingerprint"] | {"data": "0badf00d"})
    write_report(study)
    markdown = (study / "report" / "report.md").read_text()
    assert "The runs differ in: fingerprint: data" in markdown
    assert "| fingerprint: data | DIFFERS |" in markdown


def test_allowed_differences_reach_the_report(tmp_path):
    arms = study_on_disk.ARMS | {"minilm": study_on_disk.ARMS["minilm"] | {"training.learning_rate": 5e-4}}
    recipe = study_on_disk.study_recipe(num_seeds=2, arms=arms, allow_difference=["training.learning_rate"])
    write_report(study_on_disk.write_study(tmp_path / "s", recipe))
    markdown = (tmp_path / "s" / "report" / "report.md").read_text()
    assert "The recipe lets arms differ in training.learning_rate" in markdown
    assert "| training.learning_rate | 0.001 | 0.001 | 0.0005 | 0.001 |" in markdown


def tune(study, arm, **changes):
    """Let every fine-tuning have recorded what today's do, and that of ``arm`` with seed 1 the ``changes``."""
    recipe = results.load(study).recipe
    facts = {"commit": "0123abc", "versions": {"torch": "2.13.0"}}
    for place in sorted((study / "finetune").glob("**/summary.json")):
        found = json.loads(place.read_text())
        recorded = {"settings": recipe.finetune.model_dump(mode="json") | {"precision": "fp32"}, "precision": "fp32"}
        tasks = {task: part | {"content_hash": f"rows of {task}"} for task, part in found["tasks"].items()}
        machines = [facts]
        if place.parent == study / "finetune" / arm:
            recorded["settings"] |= changes.get("settings", {})
            recorded["precision"] = changes.get("precision", "fp32")
            tasks["CoLA"] |= changes.get("rows", {})
            machines = changes.get("machines", machines)
        study_on_disk.edit_summary(place.parent, tasks=tasks, **recorded)
        (place.parent / "machines.json").write_text(json.dumps(machines))
    return failed(study)


def test_equal_fine_tunings_pass(study):
    assert tune(study, "none") == {}
    checks = {finding.check: finding.detail for finding in run_findings(results.load(study))}
    assert checks["fine-tuning: settings as the recipe says"] == "in all 8 fine-tunings"
    said = checks["fine-tuning: rows, versions, hardware and commit"]
    assert said == "the same in all 8 fine-tunings: commit, versions.torch, rows of CoLA, rows of SST-2, precision"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"rows": {"content_hash": "other rows"}}, "fine-tuning: rows of CoLA"),
        ({"settings": {"epochs": 9.0}}, "fine-tuning: settings as the recipe says"),
        ({"precision": "bf16"}, "fine-tuning: precision"),
        ({"machines": [{"commit": "other", "versions": {"torch": "2.13.0"}}]}, "fine-tuning: commit"),
    ],
)
def test_another_fine_tuning_is_flagged(study, changes, check):
    found = tune(study, "minilm/seed_1", **changes)
    assert list(found) == [check]
    assert "minilm/1" in found[check]
    assert unfair_checks(results.load(study)) == [check]
    shutil.rmtree(study / "finetune" / "minilm" / "seed_1")
    assert failed(study) == {}


def test_the_fine_tuning_of_a_branch_counts_as_well(tmp_path):
    study = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=2, markers={"at": [0.5]}))
    found = tune(study, "minilm/seed_1/markers/0.5", rows={"content_hash": "other rows"})
    assert "other rows: minilm/1 at 50 %" in found["fine-tuning: rows of CoLA"]


def test_the_inputs_of_a_branch_count_as_well(tmp_path):
    study = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=2, markers={"at": [0.5]}))
    assert failed(study) == {}
    branch = layout.branch_directory(study, "minilm", 1, 0.5)
    facts = json.loads((branch / "summary.json").read_text())["fingerprint"]
    study_on_disk.edit_summary(branch, fingerprint=facts | {"data": "other text"})
    assert "minilm/1 at 50 %" in failed(study)["fingerprint: data"]


def test_another_teacher_is_flagged_where_it_taught(study):
    """`claim_study` lets scratch stand when the teacher changes; what it recorded of the one before does not count."""
    recipe = results.load(study).recipe
    for arm in recipe.arms:
        given = run_recipe(recipe, arm, 1).model_dump(mode="json", include={"arms", "teacher"})
        teacher = "before" if arm == "scratch" else "after"
        given["teacher"] |= {"precision": "fp32"} if arm == "scratch" else {}
        facts = summary_of(study, arm)["fingerprint"] | {"teacher": teacher, "teacher_source": teacher}
        change(study, arm, settings=given, fingerprint=facts)
    for arm in recipe.arms:
        run = study / "arms" / arm / "seed_0"
        facts = summary_of(study, arm)["fingerprint"]
        study_on_disk.edit_summary(run, fingerprint=facts)
    assert failed(study) == {}
    assert fingerprint_differences(results.load(study)) == {}
    change(study, "tinybert", fingerprint=summary_of(study, "tinybert")["fingerprint"] | {"teacher": "before"})
    assert list(failed(study)) == ["fingerprint: teacher"]


def test_first_weights_from_a_model_count_among_the_arms_that_begin_from_one(tmp_path):
    begins = {"method": "checkpoint", "path": "there"}
    recipe = study_on_disk.study_recipe(num_seeds=2, allow_difference=["student.initialise"])
    arms = dict(recipe.arms)
    for arm in ("minilm", "tinybert"):
        arms[arm] = arms[arm] | {f"student.initialise.{key}": value for key, value in begins.items()}
    study = study_on_disk.write_study(tmp_path / "s", recipe.model_copy(update={"arms": arms}))
    for arm, value in (("scratch", None), ("minilm", "a"), ("tinybert", "a")):
        for seed in (0, 1):
            run = study / "arms" / arm / f"seed_{seed}"
            facts = json.loads((run / "summary.json").read_text())["fingerprint"] | {"begins_from": value}
            study_on_disk.edit_summary(run, fingerprint=facts)
    assert failed(study) == {}
    study_on_disk.edit_summary(run, fingerprint=facts | {"begins_from": "b"})
    assert list(failed(study)) == ["fingerprint: begins_from"]


def with_shares(study, **shares):
    """Rows of metrics in which each arm's updates lost such shares to epsilon and to clipping."""
    for arm, (epsilon, clipped) in shares.items():
        for path in (study / "arms" / arm).glob("seed_*/metrics.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            told = {"epsilon_share": epsilon, "clipped_share": clipped}
            path.write_text("".join(json.dumps(row | told) + "\n" for row in rows))


def test_arms_that_all_move_pass(study):
    with_shares(study, scratch=(0.001, 0.0), minilm=(0.09, 0.4))
    assert failed(study) == {}


def test_an_arm_that_epsilon_mutes_is_named_and_there_is_no_verdict(study):
    with_shares(study, scratch=(0.0, 0.0), minilm=(0.99, 0.0))
    (detail,) = failed(study).values()
    assert detail == "scratch 0 %, minilm 99 %"
    assert unfair_checks(results.load(study)) == ["share of updates that Adam's epsilon took"]
    page = write_report(study).with_name("report.md").read_text()
    assert "No winner is named: arms with the same seed differ in more than their objective (share of updates" in page


def test_an_arm_that_clipping_alone_cuts_is_named(study):
    with_shares(study, scratch=(0.0, 0.0), minilm=(0.0, 0.98))
    assert failed(study) == {"share of gradients that clipping took": "scratch 0 %, minilm 98 %"}
