"""A run goes on with the data, tokenizer, teacher and first weights that it began with, or not at all."""

import json
from pathlib import Path

import pytest
from tiny_study import tiny_study, write_inputs
from transformers import AutoModel, AutoTokenizer

from kd_megatron.errors import ModelError, OutputError
from kd_megatron.files.manifest import model_hash, weights_hash
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.training.branch import leave
from kd_megatron.training.fingerprint import FINGERPRINT, INPUTS, going_on
from kd_megatron.training.run import claim_run, pretrain


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def study(inputs: Path, arm: str) -> StudyRecipe:
    recipe = tiny_study(inputs, budget={"tokens": 6 * 8 * 16})
    return recipe.model_copy(update={"arms": {arm: recipe.arms[arm]}})


def test_a_run_whose_data_changed_does_not_go_on(inputs: Path, tmp_path: Path) -> None:
    recipe, run = study(inputs, "scratch"), tmp_path / "run"
    summary = pretrain(recipe, "scratch", 0, run, None)
    assert summary["export_hash"] == model_hash(run / "export")
    (run / "summary.json").unlink()
    facts = json.loads((run / FINGERPRINT).read_text())
    (run / FINGERPRINT).write_text(json.dumps(facts | {"data": "0badf00d"}))
    with pytest.raises(OutputError, match=rf"data was 0badf00d, is {facts['data']}") as refused:
        pretrain(recipe, "scratch", 0, run, None)
    assert f"remove {run} and run the same command again" in refused.value.fix
    assert json.loads((run / FINGERPRINT).read_text())["data"] == "0badf00d"
    (run / FINGERPRINT).write_text(json.dumps(facts | {"teacher": "another"}))  # scratch owes it nothing
    assert pretrain(recipe, "scratch", 0, run, None)["validation"] == summary["validation"]


def test_a_run_that_goes_on_records_all_its_starts(inputs: Path, tmp_path: Path) -> None:
    recipe, run = study(inputs, "scratch"), tmp_path / "run"
    began = pretrain(recipe, "scratch", 0, run, None)["fingerprint"]
    elsewhere = began | {"commit": "0123abc", "hardware": began["hardware"] | {"num_processes": 4}}
    (run / FINGERPRINT).write_text(json.dumps(elsewhere))
    for _ in range(2):  # a third start that is like the second tells nothing more
        (run / "summary.json").unlink()
        now = pretrain(recipe, "scratch", 0, run, None)["fingerprint"]
        assert now["commit"] == f"0123abc, then {began['commit']}"
        assert now["hardware"] == began["hardware"] | {"num_processes": "4, then 1"}
        assert {key: now[key] for key in ("data", "tokenizer", "versions")} == {
            key: began[key] for key in ("data", "tokenizer", "versions")
        }


@pytest.mark.parametrize("key", INPUTS)
def test_each_input_is_held_against_what_the_run_began_with(inputs: Path, tmp_path: Path, key: str) -> None:
    facts = dict.fromkeys(INPUTS, "before")
    going_on(study(inputs, "minilm"), "minilm", tmp_path, facts)  # it begins
    (tmp_path / FINGERPRINT).write_text(json.dumps(facts))
    going_on(study(inputs, "minilm"), "minilm", tmp_path, facts)
    with pytest.raises(OutputError, match=f"{key} was before, is now"):
        going_on(study(inputs, "minilm"), "minilm", tmp_path, facts | {key: "now"})


@pytest.mark.parametrize("arm", ["scratch", "minilm"])
def test_a_half_trained_run_is_the_same_with_another_teacher_where_it_owes_it_nothing(
    inputs: Path, tmp_path: Path, arm: str
) -> None:
    recipe = study(inputs, arm)
    claim_run(recipe, arm, 0, tmp_path / "run")
    assert recipe.teacher is not None
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"path": "teachers/other"})})
    if arm == "scratch":
        claim_run(other, arm, 0, tmp_path / "run")
        return
    with pytest.raises(OutputError, match=r"these keys differ: teacher\.path"):
        claim_run(other, arm, 0, tmp_path / "run")


def test_a_branch_goes_on_with_the_inputs_of_the_run_that_it_leaves(inputs: Path, tmp_path: Path) -> None:
    recipe, run = study(inputs, "scratch"), tmp_path / "run"
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"keep_at": [0.5]})})
    pretrain(recipe, "scratch", 0, run, None)
    facts = json.loads((run / FINGERPRINT).read_text())
    (run / FINGERPRINT).write_text(json.dumps(facts | {"data": "0badf00d"}))
    branch = leave(run, 0.5, 0.9)
    with pytest.raises(OutputError, match=rf"data was 0badf00d, is {facts['data']}"):
        pretrain(recipe, "scratch", 0, run / "markers" / "0.9", None, branch)
    (run / FINGERPRINT).write_text(json.dumps(facts))
    assert pretrain(recipe, "scratch", 0, run / "markers" / "0.9", None, branch)["fingerprint"]["data"] == facts["data"]


def test_a_run_records_the_model_that_it_begins_from_and_refuses_one_of_another_vocabulary(
    inputs: Path, tmp_path: Path
) -> None:
    encoder, recipe = AutoModel.from_pretrained(inputs / "teacher"), study(inputs, "scratch")
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(inputs / "teacher")
    tokenizer.save_pretrained(tmp_path / "encoder")
    sizes = {key: getattr(encoder.config, key) for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
    begins = {"method": "checkpoint", "path": str(tmp_path / "encoder"), "layers": [1, 2]}
    raw = recipe.model_dump(mode="json")
    raw["student"] |= sizes | {
        "num_layers": 2, "max_positions": encoder.config.max_position_embeddings, "initialise": begins,
    }  # fmt: skip
    recipe = config.validate(StudyRecipe, raw, where="test")
    summary = pretrain(recipe, "scratch", 0, tmp_path / "run", None)
    assert summary["fingerprint"]["begins_from"] == weights_hash(str(tmp_path / "encoder"))

    tokenizer.add_tokens(["one-more"])
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="different vocabularies"):
        pretrain(recipe, "scratch", 1, tmp_path / "other", None)
