"""A best value at an edge extends the grid on that side, for every arm alike, until none is or the bound is reached."""

import json
import time

import processes
import pytest
import yaml
from study_on_disk import ARMS, study_recipe
from tiny_study import tiny_study, write_inputs

from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.config import validate
from kd_megatron.report.study.page import write_report
from kd_megatron.study import runner, tuning
from kd_megatron.study.effective import LEARNING_RATE
from kd_megatron.study.trials import places, trial_directory
from kd_megatron.study.tuning_edges import all_rounds

RATES = [1e-3, 2e-3, 4e-3]
MOST_SECONDS = 200.0


def recipe(**changes):
    given = {"learning_rates": RATES, "budget": {"flops": 1e12}, **changes}
    made = study_recipe(arms={arm: ARMS[arm] for arm in ("scratch", "vanilla_kd")}, tuning=given)
    return validate(StudyRecipe, made.model_dump(mode="json"), where="the test")


def finish(directory, study, losses):
    """Give every trial that is waiting a result: ``losses`` of (arm, setting)."""
    for trial in (trial for one in all_rounds(study, directory) for trial in one):
        for where in places(study.tuning, directory, trial).values():
            where.mkdir(parents=True, exist_ok=True)
            summary = {"status": "finished", "steps": 3, "tokens": 30, "budget": {"spent": 1e12}}
            loss = {"probe_mlm_loss": losses(trial.arm, trial.setting)}
            (where / "summary.json").write_text(json.dumps(summary | {"validation": loss}))


def rates(rounds):
    return [{(trial.arm, trial.setting[LEARNING_RATE]) for trial in one} for one in rounds[1:]]


def nearest_to(target):
    """A loss that is least at ``target[arm]``."""
    return lambda arm, setting: abs(setting[LEARNING_RATE] - target[arm])


def test_both_arms_go_on_where_one_has_its_best_at_the_upper_edge_until_none_has(tmp_path):
    study = recipe()
    losses = nearest_to({"scratch": 8e-3, "vanilla_kd": 2e-3})
    finish(tmp_path, study, losses)
    assert rates(all_rounds(study, tmp_path)) == [{("scratch", 8e-3), ("vanilla_kd", 8e-3)}]
    finish(tmp_path, study, losses)
    assert rates(all_rounds(study, tmp_path))[1:] == [{("scratch", 16e-3), ("vanilla_kd", 16e-3)}]  # 8e-3 is an edge
    finish(tmp_path, study, losses)
    found = tuning.summed_up(study, tmp_path)
    assert (found["num_trials"], found["extensions"]) == (5, 2)
    assert {arm: len(rows) for arm, rows in found["trials"].items()} == {"scratch": 5, "vanilla_kd": 5}
    assert [row["trial"] for row in found["trials"]["scratch"]] == [0, 1, 2, 3, 4]
    assert found["chosen"]["scratch"] == {LEARNING_RATE: 8e-3}
    assert found["at_edge"] == {"scratch": [], "vanilla_kd": []}


def test_the_lower_edge_too_and_both_at_once(tmp_path):
    study = recipe()
    finish(tmp_path, study, nearest_to({"scratch": 1e-4, "vanilla_kd": 1.0}))
    assert rates(all_rounds(study, tmp_path)) == [
        {("scratch", 5e-4), ("scratch", 8e-3), ("vanilla_kd", 5e-4), ("vanilla_kd", 8e-3)}
    ]


def test_rounds_are_bounded_and_what_stays_at_an_edge_is_named(tmp_path):
    study = recipe(most_extensions=1)
    losses = nearest_to({"scratch": 1.0, "vanilla_kd": 2e-3})
    for _ in range(3):
        finish(tmp_path, study, losses)
    found = tuning.summed_up(study, tmp_path)
    assert (found["num_trials"], found["at_edge"]["scratch"]) == (4, [LEARNING_RATE])


@pytest.mark.parametrize("changes", [{"most_extensions": 0}, {"charged": True}, {"learning_rates": [1e-3]}])
def test_there_are_no_rounds(tmp_path, changes):
    study = recipe(**changes)
    finish(tmp_path, study, nearest_to({"scratch": 1.0, "vanilla_kd": 1.0}))
    assert len(all_rounds(study, tmp_path)) == 1


def test_a_weight_goes_on_as_well_and_an_arm_without_one_gets_as_many_trials(tmp_path):
    alone = [5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3]
    study = recipe(learning_rates=RATES, learning_rates_alone=alone, weights={"vanilla_kd": {"weight_kd": [1.0, 5.0]}})

    def losses(arm, setting):
        return abs(setting[LEARNING_RATE] - 2e-3) + (1.0 / setting["weight_kd"] if arm == "vanilla_kd" else 0.0)

    finish(tmp_path, study, losses)
    (added,) = all_rounds(study, tmp_path)[1:]
    assert {trial.arm: trial.setting for trial in added} == {
        "scratch": {LEARNING_RATE: pytest.approx(4e-3 * 4 / 3)},
        "vanilla_kd": {LEARNING_RATE: 2e-3, "weight_kd": 25.0},
    }


def test_an_arm_that_comes_after_the_choice_follows_the_rounds_and_adds_none(tmp_path):
    """Its best lies beyond all that was tried; the others, which may be trained, keep their trials and their choice."""
    study = recipe()
    losses = nearest_to({"scratch": 4e-3, "vanilla_kd": 2e-3, "minilm": 1.0})
    for _ in range(3):
        finish(tmp_path, study, losses)
    before = tuning.summed_up(study, tmp_path)
    assert (before["extensions"], before["chosen"]["scratch"]) == (1, {LEARNING_RATE: 4e-3})
    (tmp_path / "tuning.json").write_text(json.dumps(before))
    grown = study.model_copy(update={"arms": {**study.arms, "minilm": ARMS["minilm"]}})
    for _ in range(3):
        finish(tmp_path, grown, losses)
    after = tuning.summed_up(grown, tmp_path)
    assert {arm: len(rows) for arm, rows in after["trials"].items()} == {"scratch": 4, "vanilla_kd": 4, "minilm": 4}
    assert {arm: after["chosen"][arm] for arm in study.arms} == before["chosen"]
    assert after["at_edge"]["minilm"] == [LEARNING_RATE]  # which the report says


def test_several_seeds_of_a_trial_choose_by_their_mean(tmp_path):
    study = recipe(num_seeds=2, most_extensions=0)
    finish(tmp_path, study, nearest_to({"scratch": 2e-3, "vanilla_kd": 2e-3}))
    trial = all_rounds(study, tmp_path)[0][1]
    assert [path.name for path in places(study.tuning, tmp_path, trial).values()] == ["trial_1", "trial_1_seed_1001"]
    worse = trial_directory(tmp_path, trial, 1001) / "summary.json"
    worse.write_text(worse.read_text().replace('"probe_mlm_loss": 0.0', '"probe_mlm_loss": 9.0'))
    found = tuning.summed_up(study, tmp_path)
    row = found["trials"]["scratch"][1]
    assert (row["probe_mlm_loss"], row["losses_by_seed"], row["spent"]) == (4.5, {"1000": 0.0, "1001": 9.0}, 2e12)
    assert found["chosen"]["scratch"] != row["setting"]


@pytest.mark.long
def test_a_kill_within_a_round_loses_nothing(tmp_path):
    """A real study whose trials have their best at an edge is killed while it tries one beyond, and goes on alike."""
    inputs = write_inputs(tmp_path / "inputs")
    study = tiny_study(
        inputs,
        seeds=[0],
        tuning={"learning_rates": [1e-5, 2e-5], "budget": {"tokens": 100 * 8 * 16}, "most_extensions": 1},
        validation={"at": [1.0], "probe_steps": 1},
        training={"checkpoint_every_steps": 3},
    )
    study = study.model_copy(update={"arms": {"scratch": study.arms["scratch"]}, "teacher": None})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    command = ["-m", "kd_megatron", "study", str(path), "--output"]
    beyond = tmp_path / "killed" / "tuning" / "scratch" / "trial_2"
    (process,) = processes.start([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + MOST_SECONDS
    while not [*beyond.glob("checkpoints/step_*")] and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert [*beyond.glob("checkpoints/step_*")]
    assert not (beyond / "summary.json").exists(), "it was not killed within the round"
    assert not (tmp_path / "killed" / "tuning.json").exists()
    chosen = []
    for name in ("killed", "whole"):
        runner.run_study(study, tmp_path / name, write_report)
        chosen.append(json.loads((tmp_path / name / "tuning.json").read_text()))
    assert chosen[0] == chosen[1]
    assert chosen[0]["num_trials"] == 3
