"""A study's directory: whose it is, what an edited recipe makes stale in it, and how that is done anew."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from study_on_disk import ARMS, study_recipe, write_study
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import results
from kd_megatron.errors import DataError, KdError, OutputError, RecipeError
from kd_megatron.recipe import ControlsRecipe, InclusionRecipe, InitialiseRecipe
from kd_megatron.report.study.page import write_report
from kd_megatron.study import calibration, runner
from kd_megatron.study.claim import claim_study, recalibrate
from kd_megatron.study.edits import compare

OTHER_MINILM = ARMS | {"minilm": {"objective": "minilm", "num_relation_heads": 24}}


@pytest.fixture(scope="module")
def _written(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("written") / "s", study_recipe(num_seeds=2))


@pytest.fixture
def study(tmp_path, _written):
    """A finished study of four arms and two seeds."""
    return shutil.copytree(_written, tmp_path / "s")


def refusal(recipe, study, redo=()):
    with pytest.raises(OutputError) as refused:
        claim_study(recipe, study, redo)
    return str(refused.value)


def files(study):
    return {path.relative_to(study) for path in study.rglob("*") if path.is_file()}


def test_an_edited_arm_alone_is_stale_and_the_others_stay_valid(study):
    before = files(study)
    said = refusal(study_recipe(num_seeds=2, arms=OTHER_MINILM), study)
    assert "arms.minilm.num_relation_heads was 12, is 24" in said
    assert "stale: minilm (seeds 0, 1); " in said
    assert "still valid: scratch (seeds 0, 1), vanilla_kd (seeds 0, 1), tinybert (seeds 0, 1)" in said
    assert "--redo minilm: what is stale is moved to" in said
    assert files(study) == before
    assert yaml.safe_load((study / "study.yaml").read_text())["arms"]["minilm"]["num_relation_heads"] == 12


def test_redo_moves_what_is_stale_aside_and_nothing_else(study):
    edited = study_recipe(num_seeds=2, arms=OTHER_MINILM)
    before = files(study)
    claim_study(edited, study, ["minilm", "scratch"])  # of which scratch is not stale
    moved = {path for path in before if "minilm" in path.parts}
    assert files(study) == before - moved | {Path("stale", "1", path) for path in moved}
    assert {arm: len(runs) for arm, runs in results.load(study).runs.items()} == dict.fromkeys(ARMS, 2) | {"minilm": 0}
    left = (piece for piece in runner.pieces(edited, study, write_report) if not piece.is_finished())
    unfinished = [piece.label for piece in left if not piece.label.startswith("control")]  # planted studies have none
    assert unfinished == [f"minilm seed {seed}: {what}" for what in ("pretrain", "fine-tune") for seed in (0, 1)]
    after = files(study)
    claim_study(edited, study, ["minilm"])  # the same command after a stop
    assert files(study) == after


def test_redo_goes_on_after_a_stop_in_between(study):
    edited = study_recipe(num_seeds=2, arms=OTHER_MINILM)
    (study / "stale" / "1" / "arms").mkdir(parents=True)
    (study / "arms" / "minilm").rename(study / "stale" / "1" / "arms" / "minilm")
    claim_study(edited, study, ["minilm"])
    assert (study / "stale" / "2" / "finetune" / "minilm" / "seed_0").is_dir()
    assert not (study / "finetune" / "minilm").exists()


def test_what_every_arm_read_makes_all_of_them_stale(study):
    said = refusal(study_recipe(num_seeds=2, training={"global_batch_size": 32}), study)
    assert "training.global_batch_size was 64, is 32" in said
    assert "still valid" not in said
    assert "--redo scratch,vanilla_kd,minilm,tinybert:" in said


def test_another_teacher_makes_what_it_taught_stale(study):
    said = refusal(study_recipe(num_seeds=2, teacher={"path": "teachers/other"}), study)
    assert "still valid: scratch (seeds 0, 1)\n" in said
    assert "--redo vanilla_kd,minilm,tinybert:" in said


def test_another_teacher_makes_those_stale_that_began_with_its_layers():
    recipe = study_recipe(teacher={"path": "teachers/one"})
    student = recipe.student.model_copy(update={"initialise": InitialiseRecipe(method="teacher_layers")})
    recipe = recipe.model_copy(update={"student": student})
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"path": "teachers/other"})})
    assert compare(recipe, other).arms == list(recipe.arms)


def test_another_fine_tuning_leaves_the_students_valid(study):
    finetune = study_recipe().finetune.model_dump() | {"epochs": 2.0}
    edited = study_recipe(num_seeds=2, finetune=finetune)
    said = refusal(edited, study)
    assert "still valid: scratch (seeds 0, 1)" in said
    assert "stale: all fine-tunings" in said
    claim_study(edited, study, ["finetune"])
    assert not (study / "finetune").exists()
    assert (study / "stale" / "1" / "finetune" / "scratch" / "seed_0" / "summary.json").is_file()
    assert len(results.load(study).all_runs()) == 8


def test_the_studys_own_teacher_is_stale_where_its_data_is(study):
    (study / "teacher").mkdir()
    changed = study_recipe(num_seeds=2, data={"shards": [{"path": "data/other"}]})
    assert "stale: the study's own teacher" in refusal(changed, study, list(ARMS))
    assert not compare(study_recipe(), study_recipe(budget={"flops": 1e13})).teacher


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"num_seeds": 1}, "seeds"), ({"num_seeds": 2, "arms": {"scratch": ARMS["scratch"]}}, "arms.minilm.objective")],
)
def test_a_study_does_not_shrink(study, changes, key):
    said = refusal(study_recipe(**changes), study, ["scratch"])
    assert key in said
    assert "a study only grows" in said


def test_an_edit_before_anything_has_run_is_free(tmp_path):
    claim_study(study_recipe(), tmp_path / "s")
    claim_study(study_recipe(budget={"flops": 1e12}, arms=OTHER_MINILM), tmp_path / "s")
    assert results.load(tmp_path / "s").recipe.budget.flops == 1e12
    claim_study(study_recipe(num_seeds=1, arms={"scratch": ARMS["scratch"]}), tmp_path / "s")  # leaving out as well
    assert results.load(tmp_path / "s").recipe.seeds == [0]


def test_a_study_may_grow_and_be_renamed_in_words(study):
    arms = ARMS | {"minilm_24": {"objective": "minilm", "num_relation_heads": 24}}
    claim_study(study_recipe(num_seeds=3, arms=arms, description="more", notes=["new"]), study)
    assert list(results.load(study).recipe.arms)[-1] == "minilm_24"
    assert len(results.load(study).all_runs()) == 8


def test_an_arm_that_comes_later_may_bring_what_belongs_to_it(study):
    rate = "training.learning_rate"
    mine = ARMS | {"mine": {"objective": "minilm", "num_relation_heads": 12, rate: 2e-3}}
    claim_study(study_recipe(num_seeds=2, arms=mine, allow_difference=[rate]), study)
    assert "allow_difference" in refusal(study_recipe(num_seeds=2, arms=mine), study)  # the arm needs it


def test_a_weight_that_is_tuned_for_a_new_arm_makes_nothing_stale():
    tuning = {"learning_rates": [1e-3], "budget": {"flops": 1e12}}
    old = study_recipe(tuning=tuning)
    weights = {"mine": {"weight_kd": [1.0]}}
    mine = ARMS | {"mine": {"objective": "vanilla_kd"}}
    assert compare(old, study_recipe(arms=mine, tuning=tuning | {"weights": weights})).keys == []
    edited = study_recipe(arms=mine, tuning=tuning | {"weights": {"vanilla_kd": {"weight_kd": [1.0]}}})
    assert compare(old, edited).arms == list(ARMS)


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="is not empty"):
        claim_study(study_recipe(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_redo_names_arms(study):
    with pytest.raises(RecipeError, match=r"did you mean 'minilm'\?"):
        claim_study(study_recipe(num_seeds=2), study, ["minilmm"])


def test_what_was_measured_and_chosen_for_all_is_kept_for_the_others(study):
    (study / "calibration.json").write_text(json.dumps({"arms": {key: {} for key in ARMS}}))
    each = {part: {key: {} for key in ARMS} for part in ("chosen", "trials", "at_edge", "charged")}
    (study / "tuning.json").write_text(json.dumps(each | {"seed": 1}))
    claim_study(study_recipe(num_seeds=2, arms=OTHER_MINILM), study, ["minilm"])
    assert "minilm" not in json.loads((study / "calibration.json").read_text())["arms"]
    chosen = json.loads((study / "tuning.json").read_text())
    assert chosen.pop("seed") == 1
    assert {tuple(part) for part in chosen.values()} == {("scratch", "vanilla_kd", "tinybert")}


def test_only_a_calibration_of_elsewhere_that_nothing_ran_with_is_made_anew(study):
    here = calibration.machine.facts(())["hardware"] | {"num_processes": 1}
    path = study / "calibration.json"
    path.write_text(json.dumps({"arms": {key: {} for key in ARMS}, "hardware": here}))
    recalibrate(study)
    assert path.is_file()  # of this machine: the command can be given again
    path.write_text(json.dumps({"arms": {key: {} for key in ARMS}, "hardware": here | {"device": "another"}}))
    with pytest.raises(OutputError, match=r"with device another.*there are runs.*scratch \(seeds 0, 1\)"):
        recalibrate(study)
    shutil.rmtree(study / "arms")
    recalibrate(study)
    assert not path.is_file()
    recalibrate(study)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"tokens": 100}, r"one optimizer step of arm scratch costs 128"),
        ({"flops": 1000}, r"one optimizer step of arm scratch costs"),
        ({"tokens": 128}, "validations at 0.5, 1"),
    ],
)
def test_a_budget_too_small_is_refused_before_anything_is_written(tmp_path, budget, message):
    recipe = tiny_study(write_inputs(tmp_path), budget={"tokens": None} | budget)
    with pytest.raises(RecipeError, match=message):
        runner.run_study(recipe, tmp_path / "s", write_report)
    assert not (tmp_path / "s").exists()


def test_a_pool_larger_than_the_text_is_refused_before_anything_is_written(tmp_path):
    recipe = tiny_study(write_inputs(tmp_path), grid={"unique_tokens": [512, 10**9]})
    with pytest.raises(DataError, match=r"data\.unique_tokens=1000000000 takes"):
        runner.run_study(recipe, tmp_path / "s", write_report)
    assert not (tmp_path / "s").exists()


def test_errors_say_what_was_expected_and_what_to_change(study):
    with pytest.raises(KdError) as refused:
        claim_study(study_recipe(num_seeds=2, arms=OTHER_MINILM), study)
    assert re.search(r"expected: .*\n  to fix: ", str(refused.value))


def test_an_arms_name_may_have_dots(tmp_path):
    arms = ARMS | {"kd_T0.5": {"objective": "vanilla_kd", "temperature": 0.5}}
    study = tmp_path / "s"
    claim_study(study_recipe(num_seeds=1, arms=arms), study)
    (study / "arms" / "kd_T0.5" / "seed_0").mkdir(parents=True)
    edited = arms | {"kd_T0.5": {"objective": "vanilla_kd", "temperature": 0.25}}
    said = refusal(study_recipe(num_seeds=1, arms=edited), study)
    assert "arms.kd_T0.5.temperature was 0.5, is 0.25" in said
    assert "stale: kd_T0.5 (seed 0)\n" in said
    more = arms | {"kd_T0.25": {"objective": "vanilla_kd", "temperature": 0.25}}
    assert compare(study_recipe(arms=arms), study_recipe(arms=more)).keys == []
    assert compare(study_recipe(arms=arms), study_recipe()).shrunk == [
        "arms.kd_T0.5.objective", "arms.kd_T0.5.temperature"
    ]  # fmt: skip


def test_fine_tunings_of_controls_are_stale_with_the_others(study):
    tuned = study / "controls" / "untrained" / "finetune"
    tuned.mkdir(parents=True)
    (tuned / "summary.json").write_text("{}")
    recipe = study_recipe(num_seeds=2)
    edited = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"epochs": 9.0})})
    shutil.rmtree(study / "finetune")  # a stop after the controls
    with pytest.raises(OutputError, match="stale: all fine-tunings"):
        claim_study(edited, study)
    claim_study(edited, study, ["finetune"])
    assert not tuned.exists()
    assert (study / "stale" / "1" / "controls" / "untrained" / "finetune" / "summary.json").is_file()
    off = edited.model_copy(update={"controls": ControlsRecipe(teacher=False)})
    claim_study(off, study)  # nothing hangs on it
    rule = InclusionRecipe(above_majority=0.2)
    claim_study(off.model_copy(update={"finetune": off.finetune.model_copy(update={"inclusion": rule})}), study)
