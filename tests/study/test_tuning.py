"""Equal tuning effort: how trials are counted and chosen, and a real small study that is calibrated and tuned."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from study_on_disk import ARMS, study_recipe
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import results
from kd_megatron.errors import EnvironmentFault, OutputError, RecipeError
from kd_megatron.machine import facts
from kd_megatron.recipe import CalibrateRecipe, StudyRecipe, config
from kd_megatron.recipe.arms import resolve_arm
from kd_megatron.report.study import tuning_tables
from kd_megatron.report.study.page import write_report
from kd_megatron.study import begin, calibration, fairness, layout, runner, tuning
from kd_megatron.study.claim import claim_study
from kd_megatron.study.effective import (
    LEARNING_RATE,
    effective_recipe,
    recipe_of_run,
    steps_within,
    with_setting,
    with_steps,
    with_tuning,
)
from kd_megatron.study.trials import NON_FINITE_FILE, trial_directory

TUNING = {"learning_rates": [1e-3, 3e-3], "budget": {"flops": 1e12}}
HOURS, TRIAL_HOURS = 2.4 / 3600, 1.2 / 3600  # many steps of a few ms, so that a busy machine does some of them too
WEIGHTS = {"vanilla_kd": {"weight_kd": [1.0, 5.0, 25.0]}}


def validated(**changes):
    recipe = study_recipe(**{"arms": {arm: ARMS[arm] for arm in ("scratch", "vanilla_kd")}, **changes})
    return config.validate(StudyRecipe, recipe.model_dump(mode="json"), where="the test")


def test_every_arm_tries_the_same_learning_rates():
    recipe = validated(tuning=TUNING)
    tried = {arm: [trial.setting for trial in tuning.trials(recipe.tuning, arm)] for arm in recipe.arms}
    assert tried["scratch"] == tried["vanilla_kd"] == [{LEARNING_RATE: 1e-3}, {LEARNING_RATE: 3e-3}]


def test_a_weight_is_tried_with_every_learning_rate_and_other_arms_get_as_many_rates():
    rates = [5e-4, 7e-4, 1e-3, 2e-3, 3e-3, None]
    recipe = validated(tuning=TUNING | {"weights": WEIGHTS, "learning_rates_alone": rates})
    assert recipe.tuning.num_trials("scratch") == recipe.tuning.num_trials("vanilla_kd") == 6
    assert [trial.setting["weight_kd"] for trial in tuning.trials(recipe.tuning, "vanilla_kd")] == [1.0, 5.0, 25.0] * 2
    given = tuning.trials(recipe.tuning, "scratch")
    assert [trial.setting[LEARNING_RATE] for trial in given] == rates[:5]  # the last is given up


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": WEIGHTS}, r"scratch 2, vanilla_kd 6.*learning_rates_alone"),
        ({"weights": {"minilm": {"x": [1.0]}}}, "minilm, which is no arm"),
        ({"weights": {"vanilla_kd": {"weight_kd": [1.0], "weight_mlm": [1.0]}}}, "one for each arm"),
        ({"seed": 1}, "tuning.seed 1 is one of seeds"),
        ({"learning_rates": [1e-3, 1e-3]}, "different values"),
        ({"charged": True, "budget": {"tokens": 10}}, "one unit"),
        ({"charged": True, "budget": {"flops": 3.1e13}}, "use up the whole budget"),
    ],
)
def test_unequal_or_impossible_trials_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        config.validate(StudyRecipe, validated().model_dump(mode="json") | {"tuning": TUNING | changes}, where="s")


def test_a_trial_that_its_objective_does_not_know_is_refused_before_anything_is_spent():
    weights = {"vanilla_kd": {"weight_kdd": [1.0]}}
    with pytest.raises(RecipeError, match="did you mean 'weight_kd'"):
        tuning.check(validated(tuning=TUNING | {"weights": weights}))
    with pytest.raises(RecipeError, match="weight_kd is 0"):
        tuning.check(validated(tuning=TUNING | {"weights": {"vanilla_kd": {"weight_kd": [0.0]}}}))


def test_a_trial_is_measured_on_other_held_out_windows_than_a_student(tmp_path):
    recipe = study_recipe(tuning={"learning_rates": [1e-3], "budget": {"flops": 1e12}})
    trial = tuning.trial_recipe(recipe, tmp_path, tuning.trials(recipe.tuning, "scratch")[0])
    assert recipe.validation.skip_samples == 0
    assert trial.validation.skip_samples == recipe.validation.num_samples == trial.validation.num_samples


def test_an_arm_that_gives_what_tuning_chooses_is_refused():
    arms = {"scratch": {"objective": "scratch", LEARNING_RATE: 1e-3}}
    with pytest.raises(RecipeError, match="which tuning decides"):
        tuning.check(validated(arms=arms, allow_difference=[LEARNING_RATE], tuning=TUNING))


def test_a_path_leads_through_lists_and_mappings():
    options = {"objective": "combined", "parts": [{"weight": 1.0}, {"weight": 0.5, "more": {"x": 1}}]}
    found = with_setting(options, {"parts.1.weight": 2.0, "parts.1.more.x": 3.0, LEARNING_RATE: 1e-4})
    assert found["parts"] == [{"weight": 1.0}, {"weight": 2.0, "more": {"x": 3.0}}]
    assert found[LEARNING_RATE] == 1e-4
    assert options["parts"][1]["weight"] == 0.5


def write_trials(directory, recipe, losses):
    """Finished trials of chosen losses; None is one that was not finite."""
    for arm, values in losses.items():
        for trial, loss in zip(tuning.trials(recipe.tuning, arm), values, strict=True):
            where = trial_directory(directory, trial)
            where.mkdir(parents=True)
            if loss is None:
                (where / NON_FINITE_FILE).write_text('{"error": "the loss is nan"}')
                continue
            validation = {"probe_mlm_loss": loss}
            summary = {"status": "finished", "steps": 3, "tokens": 30, "budget": {"spent": 1.25e12}}
            (where / "summary.json").write_text(json.dumps(summary | {"validation": validation}))


def test_the_lowest_loss_is_chosen_and_what_is_not_finite_is_the_worst(tmp_path):
    rates = [1e-4, 1e-3, 1e-2]
    recipe = validated(tuning=TUNING | {"learning_rates": rates, "charged": True})
    write_trials(tmp_path, recipe, {"scratch": [3.0, 2.0, None], "vanilla_kd": [4.0, math.nan, 3.5]})
    found = tuning.summed_up(recipe, tmp_path)
    assert found["chosen"] == {"scratch": {LEARNING_RATE: 1e-3}, "vanilla_kd": {LEARNING_RATE: 1e-2}}
    assert found["at_edge"] == {"scratch": [], "vanilla_kd": [LEARNING_RATE]}
    assert [row["is_finite"] for row in found["trials"]["scratch"]] == [True, True, False]
    assert [row["is_finite"] for row in found["trials"]["vanilla_kd"]] == [True, False, True]
    assert found["charged"] == {"scratch": 2 * 1.25e12 + 1e12, "vanilla_kd": 3 * 1.25e12}


def test_an_arm_without_a_finite_trial_is_refused(tmp_path):
    recipe = validated(tuning=TUNING)
    write_trials(tmp_path, recipe, {"scratch": [None, None], "vanilla_kd": [4.0, 5.0]})
    with pytest.raises(RecipeError, match="none of the 2 trials of arm scratch"):
        tuning.summed_up(recipe, tmp_path)


def test_what_was_chosen_is_an_override_that_the_fairness_check_names(tmp_path):
    recipe = validated(tuning=TUNING | {"charged": True})
    write_trials(tmp_path, recipe, {"scratch": [3.0, 2.0], "vanilla_kd": [3.0, 4.0]})
    found = tuning.summed_up(recipe, tmp_path)
    tuned = with_tuning(recipe, found)
    assert with_tuning(tuned, found) == tuned
    named = {difference.key: difference.values for difference in fairness.check(tuned)}
    assert named == {LEARNING_RATE: {"scratch": 3e-3, "vanilla_kd": 1e-3}}  # both paid the same for their trials
    assert resolve_arm(tuned, "scratch").budget.flops == 6e13 - 2.5e12


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real study in hours: calibrated, tuned, trained, reported."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    recipe = tiny_study(
        inputs,
        budget={"tokens": None, "hours": HOURS, "calibrate": {"rounds": 2, "steps": 1}},
        tuning={"learning_rates": [1e-3, 1e-2], "budget": {"hours": TRIAL_HOURS}, "most_extensions": 0},
        validation={"probe_steps": 1},
    )
    recipe = recipe.model_copy(update={"arms": {arm: recipe.arms[arm] for arm in ("scratch", "vanilla_kd")}})
    directory = tmp_path_factory.mktemp("study") / "tiny"
    runner.run_study(recipe, directory, write_report)
    return recipe, directory


def test_a_calibrated_run_takes_its_fixed_steps_whatever_the_clock_says(finished):
    _, directory = finished
    measured = json.loads((directory / "calibration.json").read_text())
    for run in results.load(directory).all_runs():
        speed = measured["arms"][run.arm]["tokens_per_second"]
        assert speed["p20"] <= speed["p50"] <= speed["p80"]
        assert len(speed["rounds"]) == 2
        steps = math.floor(HOURS * 3600.0 * speed["p50"] / (8 * 16))
        recorded = layout.finished_run(layout.arm_directory(directory, run.arm, run.seed))["budget"]["calibrated"]
        assert recorded == {"steps": steps, "tokens_per_second": speed["p50"]}
        assert run.summary.steps == steps
        fractions = [row["budget_fraction"] for row in run.metrics if "loss" in row]
        assert fractions == pytest.approx([number / steps for number in range(1, steps + 1)])
        assert run.summary.budget.spent > 0  # hours that passed are still recorded


def test_every_trial_is_recorded_and_the_best_is_what_runs(finished):
    recipe, directory = finished
    assert not [*(directory / "tuning").rglob("step_*")], "nothing goes on from a trial that is finished"
    found = json.loads((directory / "tuning.json").read_text())
    for arm, rows in found["trials"].items():
        assert [row["setting"][LEARNING_RATE] for row in rows] == [1e-3, 1e-2]
        best = min(rows, key=lambda row: row["probe_mlm_loss"])
        assert found["chosen"][arm] == best["setting"]
        assert recipe_of_run(recipe, directory, arm, 0).training.learning_rate == best["setting"][LEARNING_RATE]
        trial = layout.finished_run(directory / "tuning" / arm / "trial_0")
        assert trial["seed"] == 1000
        assert trial["steps"] == trial["budget"]["calibrated"]["steps"]
    assert results.load(directory).recipe == effective_recipe(recipe, directory)


def test_the_report_says_whose_weights_were_not_tuned(finished):
    _, directory = finished
    said = tuning_tables.tuning_caveats(results.load(directory))
    assert "Learning rates were tried, weights of the objective were not, in vanilla_kd." in said


def test_trials_and_calibration_reach_the_report(finished):
    _, directory = finished
    data = json.loads((directory / "report" / "results.json").read_text())
    assert len(data["tables"]["tuning"]) == 4
    assert sum(row["outcome"] == "chosen" for row in data["tables"]["tuning"]) == 2
    assert {row["arm"] for row in data["tables"]["calibration"]} == {"scratch", "vanilla_kd"}
    said = " ".join(data["caveats"])
    assert "the clock ended no run" in said
    assert "Before training every arm had 2 trials" in said
    assert "at the edge of those tried" in said  # of two values one always is
    assert "untuned" not in said
    checks = {row["check"]: row["result"] for row in data["tables"]["fairness"]}
    assert checks["equal budgets"] == "agrees"
    tuning_tables.show(results.load(directory))


def test_a_finished_tuned_study_is_left_alone(finished):
    recipe, directory = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*.json") if "report" not in path.parts}
    runner.run_study(recipe, directory, write_report)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_machine_than_the_calibrated_one_is_refused(finished):
    _, directory = finished
    measured = json.loads((directory / "calibration.json").read_text())
    calibration.refuse_other_machine(measured)
    there = measured | {"hardware": measured["hardware"] | {"device": "a faster one"}}
    with pytest.raises(EnvironmentFault, match=r"(?s)with device a faster one; here: device .*--recalibrate"):
        calibration.refuse_other_machine(there)
    assert measured["hardware"]["device"] == facts.device_name()


def test_a_trial_on_another_machine_than_the_calibrated_one_is_refused_before_it_begins(finished, tmp_path):
    recipe, directory = finished
    measured = json.loads((directory / "calibration.json").read_text())
    there = measured | {"hardware": measured["hardware"] | {"device": "a faster one"}}
    (tmp_path / "calibration.json").write_text(json.dumps(there))
    with pytest.raises(EnvironmentFault, match="a faster one"):
        tuning.tuning_pieces(recipe, tmp_path)[0].run()
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_a_calibrated_budget_with_fewer_steps_than_validations_is_refused(tmp_path):
    recipe = tiny_study(tmp_path, validation={"at": [0.1, 0.5, 1.0]}, budget={"tokens": None, "hours": 1.0})
    two_steps_an_hour = speeds(scratch=2 * 8 * 16 / 3600)
    with pytest.raises(RecipeError, match="2 optimizer steps, so that validations at"):
        calibration._require_enough(recipe, "scratch", two_steps_an_hour)
    calibration._require_enough(recipe, "scratch", speeds(scratch=100.0))


def test_what_charged_trials_leave_must_be_enough_for_the_validations(tmp_path):
    trials = {"learning_rates": [1e-3, 3e-3], "budget": {"tokens": 9 * 8 * 16}, "charged": True}
    validation = {"at": [0.25, 0.5, 1.0]}
    recipe = tiny_study(tmp_path, validation=validation, tuning=trials)  # 20 steps, 2 trials of 9
    with pytest.raises(RecipeError, match="2 optimizer steps, so that validations at"):
        begin.refuse_too_small(recipe, tmp_path)
    free = tiny_study(tmp_path, validation=validation, tuning=trials | {"charged": False})
    begin.refuse_too_small(free, tmp_path)


def speeds(**medians):
    return {
        "hardware": {"num_processes": 2},
        "arms": {arm: {"tokens_per_second": calibration._spread([value])} for arm, value in medians.items()},
    }


def test_an_arm_that_comes_later_is_brought_to_the_level_of_the_others():
    before, now = speeds(scratch=100.0, vanilla_kd=60.0), speeds(scratch=50.0, vanilla_kd=30.0, minilm=35.0)
    arms = calibration.joined(before, now)["arms"]
    assert {arm: entry["tokens_per_second"]["p50"] for arm, entry in arms.items()} == {
        "scratch": 100.0,
        "vanilla_kd": 60.0,
        "minilm": 70.0,
    }
    assert arms["minilm"]["scaled_by"] == 2.0
    assert calibration.joined(None, now) == now


def test_phases_are_timed_each_and_weighed_by_their_share(tmp_path, monkeypatch):
    """Half of the steps at 100 and half at 50 tokens/s: 1 / (0.5 / 100 + 0.5 / 50)."""
    phases = [{"until": 0.5, "objective": "scratch"}, {"until": 1.0, "objective": "vanilla_kd"}]
    recipe = tiny_study(write_inputs(tmp_path))
    arms = {"scratch": recipe.arms["scratch"], "both": {"objective": "schedule", "phases": phases}}
    given = {("scratch", "scratch"): 80.0, ("both", "scratch"): 100.0, ("both", "vanilla_kd"): 50.0}
    speed = lambda timed, steps: given[timed.run.arm, timed.run.objective.options.objective]  # noqa: E731
    monkeypatch.setattr(calibration, "_speed", speed)
    recipe = recipe.model_copy(update={"arms": arms})
    found = calibration.measure(recipe, CalibrateRecipe(rounds=2, steps=1), str(tmp_path / "teacher"))
    medians = {arm: entry["tokens_per_second"]["p50"] for arm, entry in found["arms"].items()}
    assert medians == {"scratch": 80.0, "both": pytest.approx(200 / 3)}
    assert {entry["tokens_per_step"] for entry in found["arms"].values()} == {8 * 16}


def test_arms_take_turns_and_every_other_round_goes_backwards(tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(calibration, "_speed", lambda run, steps: timed.append(run.run.arm) or 1.0)
    recipe = tiny_study(write_inputs(tmp_path))
    recipe = recipe.model_copy(update={"arms": {arm: recipe.arms[arm] for arm in ("scratch", "minilm", "tinybert")}})
    calibration.measure(recipe, CalibrateRecipe(rounds=3, steps=1), str(tmp_path / "teacher"))
    forwards = ["scratch", "minilm", "tinybert"]
    assert timed == [*forwards, *reversed(forwards), *forwards]


@pytest.mark.parametrize(
    ("device", "seconds_per_step", "asked", "expected"),
    [("cpu", 0.01, 4, 4), ("cuda", 0.01, 4, 50), ("cuda", 0.01, 80, 80), ("cuda", 1.0, 4, 5), ("cuda", 10.0, 4, 4)],
)
def test_a_turn_on_a_gpu_has_fifty_steps_or_five_seconds(monkeypatch, device, seconds_per_step, asked, expected):
    timed = SimpleNamespace(run=SimpleNamespace(device=torch.device(device)), num_tokens=100)
    monkeypatch.setattr(calibration, "_speed", lambda run, steps: run.num_tokens / seconds_per_step)
    assert calibration.turn_steps(timed, asked) == expected


def test_a_calibration_counts_charged_accounts_alone(tmp_path):
    found = {}
    for account in ("student", "data_wait"):
        recipe = tiny_study(
            write_inputs(tmp_path / account), budget={"tokens": None, "hours": 1.0, "charge": [account]}
        )
        recipe = recipe.model_copy(update={"arms": {"scratch": recipe.arms["scratch"]}})
        arms = calibration.measure(recipe, CalibrateRecipe(rounds=2, steps=2), None)["arms"]
        found[account] = arms["scratch"]["tokens_per_second"]["p50"]
    assert found["data_wait"] > 5 * found["student"]  # of a step, waiting for the data is a small part


@pytest.mark.parametrize(("budget", "steps"), [({"hours": 1.0}, 36), ({"gpu_hours": 1.0}, 18)])
def test_steps_are_whole_ones_within_the_budget(budget, steps):
    recipe = study_recipe(budget=budget)
    assert steps_within(recipe.budget, 83.0, 8192, num_processes=2) == steps


def test_a_budget_below_one_step_is_refused():
    recipe = study_recipe(budget={"hours": 1e-3})
    with pytest.raises(RecipeError, match=r"less than one step, which takes 81\.9 s here"):
        with_steps(recipe, "scratch", speeds(scratch=100.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"flops": 1e12, "calibrate": {}}}, "for budgets in hours or gpu_hours"),
        ({"budget": {"hours": 1.0, "charge": ["student", "teacher_for_others"], "calibrate": {}}}, "others is charged"),
        ({"tuning": TUNING | {"budget": {"hours": 0.1, "calibrate": {}}}}, "belongs to the study's budget"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        config.validate(StudyRecipe, validated().model_dump(mode="json") | changes, where="s")


def test_a_counted_budget_on_the_command_line_takes_the_calibration_away():
    raw = {"budget": {"hours": 4.0, "calibrate": {"rounds": 5}}}
    config.apply_override(raw, "budget.gpu_hours=2.0")
    assert raw == {"budget": {"gpu_hours": 2.0, "calibrate": {"rounds": 5}}}
    config.apply_override(raw, "budget.flops=1e18")
    assert raw == {"budget": {"flops": 1e18}}


def test_an_unfinished_tuned_study_still_reports(finished, tmp_path):
    recipe, _ = finished
    claim_study(recipe, tmp_path / "s")
    write_report(tmp_path / "s")
    with pytest.raises(OutputError):
        results.load(tmp_path / "other")


def test_a_calibrated_trial_is_charged_its_budget_and_not_what_a_noisy_clock_said(tmp_path):
    budget = {"hours": 4.0, "calibrate": {}}
    recipe = validated(budget=budget, tuning=TUNING | {"budget": {"hours": 0.5}, "charged": True})
    write_trials(tmp_path, recipe, {"scratch": [3.0, 2.0], "vanilla_kd": [4.0, None]})  # each "spent" something else
    assert tuning.summed_up(recipe, tmp_path)["charged"] == {"scratch": 1.0, "vanilla_kd": 1.0}
