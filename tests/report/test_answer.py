import json
import shutil

import pytest
import study_on_disk

from kd_megatron.analysis import comparisons, results
from kd_megatron.report.study.answer import answer

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "vanilla_kd")}


def read(tmp_path, **arguments):
    finetuned, arguments = arguments.pop("finetuned", True), {"protocol": study_on_disk.BY_SCORE} | arguments
    return results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(**arguments), finetuned))


def test_a_difference_that_excludes_zero(tmp_path):
    said = answer(read(tmp_path))
    assert said.startswith("Under a budget of 6.00e13 FLOPs, minilm has the best mean score (59.2 points, 3 seeds)")
    # differences by seed, in points: 7.5, 6.5, 7.5: mean 7.1667, s = 0.57735, half = 4.302653 / 3
    assert "7.2 points better than scratch" in said
    assert "+5.7 to +8.6" in said
    assert said.endswith("the interval excludes zero; these seeds cannot tell minilm from tinybert or vanilla_kd.")


def test_a_winner_that_is_ahead_of_all_others_is_named_without_doubt(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.SCORES, "tinybert", study_on_disk.SCORES["scratch"])
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm", "tinybert")}
    study = read(tmp_path, arms=arms, protocol=study_on_disk.BY_SCORE | {"arms": ["minilm"]})
    assert comparisons.winner(study, "score") == "minilm"
    assert answer(study).endswith("the interval excludes zero.")


def test_a_difference_that_includes_zero_is_undecided(tmp_path):
    said = answer(read(tmp_path, arms=ARMS))
    assert "vanilla_kd has the best mean score" in said
    assert said.endswith("the interval includes zero: these seeds cannot tell vanilla_kd from scratch.")


def test_one_seed_is_no_evidence(tmp_path):
    said = answer(read(tmp_path, num_seeds=1))
    assert said.endswith("in one seed: no interval can be given, so this is one observation and no evidence.")
    assert "interval excludes" not in said


def test_scratch_first_is_compared_with_the_runner_up(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.SCORES, "scratch", study_on_disk.SCORES["minilm"])
    said = answer(read(tmp_path, arms=ARMS))
    assert "scratch has the best mean score" in said
    assert "better than vanilla_kd" in said


def test_without_fine_tuning_the_probe_decides_and_lower_is_better(tmp_path):
    said = answer(read(tmp_path, finetuned=False))
    assert "scratch has the best held-out MLM loss (probe) (3.880 nats, 3 seeds)" in said
    assert "0.057 nats better than vanilla_kd" in said


@pytest.mark.parametrize("arms", [{"scratch": ARMS["scratch"]}])
def test_a_single_arm_is_compared_with_nothing(tmp_path, arms):
    assert answer(read(tmp_path, arms=arms)).endswith("no other arm has a result to compare it with.")


def test_no_run_at_all(tmp_path):
    recipe = study_on_disk.study_recipe()
    directory = study_on_disk.write_study(tmp_path / "s", recipe.model_copy(update={"seeds": []}))
    (directory / "study.yaml").write_text((directory / "study.yaml").read_text().replace("seeds: []", "seeds: [0]"))
    assert answer(results.load(directory)) == "No run has finished yet: there is no answer."


def test_arms_are_ranked_over_the_seeds_they_share(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.SCORES, "vanilla_kd", {"CoLA": [0.0, 0.0, 1.0], "SST-2": [0.0, 0.0, 1.0]})
    study = read(tmp_path, arms=ARMS)
    summary = study.directory / "arms" / "scratch" / "seed_2" / "summary.json"
    summary.unlink()  # seed 2, where vanilla_kd shines, is missing in scratch
    assert "scratch has the best mean score (52.0 points, 2 seeds)" in answer(results.load(study.directory))


def test_an_unfair_study_names_no_winner(tmp_path):
    directory = read(tmp_path).directory
    run = directory / "arms" / "minilm" / "seed_1"
    recorded = json.loads((run / "summary.json").read_text())["fingerprint"]
    study_on_disk.edit_summary(run, fingerprint=recorded | {"data": "0badf00d"})
    study = results.load(directory)
    assert answer(study).startswith(
        "No winner is named: arms with the same seed differ in more than their objective (finger"
    )
    assert {one.verdict for one in comparisons.all_comparisons(study)} == {"unfair: none"}
    assert comparisons.winner(study, "score") is None


def test_what_differs_between_seeds_alone_is_fair(tmp_path):
    directory = read(tmp_path).directory
    for arm in study_on_disk.ARMS:
        run = directory / "arms" / arm / "seed_1"
        recorded = json.loads((run / "summary.json").read_text())["fingerprint"]
        study_on_disk.edit_summary(run, fingerprint=recorded | {"commit": "newer"})
    assert "minilm has the best mean score" in answer(results.load(directory))
    shutil.rmtree(directory / "arms" / "tinybert" / "seed_2")  # an unfinished study is no unfair one
    assert "has the best mean score" in answer(results.load(directory))
