"""The arms that reproduce the study's code run a teacher that drops out, by draws that a resume repeats."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import curve
from safetensors.torch import load_file
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.engine import checkpoint
from kd_megatron.engine.flops import arm_cost
from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.files.records import read_metrics
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import prepare_run

AS_CODED = {"objective": "vanilla_kd", "as_coded": True}
ARM = "vanilla_kd_as_coded"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("dropout"), hidden_dropout_prob=0.3)


def study(inputs: Path, **changes: Any) -> Any:
    return tiny_study(inputs, arms=ARMS | {ARM: AS_CODED}, **changes)


def test_its_targets_change_from_call_to_call_and_those_of_other_arms_do_not(inputs: Path, tmp_path: Path) -> None:
    for arm, drops_out in ((ARM, True), ("vanilla_kd", False)):
        run = prepare_run(study(inputs), arm, 0, tmp_path / arm, str(inputs / "teacher"))
        (batch,) = run.micro_batches(0)
        once, again = (run.step.teacher(batch, "masked").logits.dense() for _ in range(2))
        assert torch.equal(once, again) != drops_out
        assert run.step.teacher.encoder.training == drops_out
        assert not any(parameter.requires_grad for parameter in run.step.teacher.encoder.parameters())
        run.close()


def test_the_same_run_draws_the_same_numbers(inputs: Path, tmp_path: Path) -> None:
    once, again = (curve(study(inputs), ARM, tmp_path / name, inputs / "teacher", 3, 1e-3) for name in ("a", "b"))
    assert once == again


def test_a_resume_draws_them_too(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = study(inputs, student={"hidden_dropout": 0.1})
    teacher = str(inputs / "teacher")
    pretrain(recipe, ARM, 0, tmp_path / "whole", teacher)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "droppable", lambda *given: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OutputError):
            pretrain(recipe, ARM, 0, tmp_path / "run", teacher)
    pretrain(recipe, ARM, 0, tmp_path / "run", teacher)
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "run"))
    assert [row.get("loss") for row in before] == [row.get("loss") for row in after]
    whole, resumed = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    facts = json.loads((tmp_path / "run" / "export" / "kd_megatron.json").read_text())
    assert facts["objective_in_words"] == "vanilla_kd, as the study's code computes it"
    assert facts["objective_in_words"] in (tmp_path / "run" / "export" / "README.md").read_text()


def test_a_cache_of_such_a_teacher_is_refused_before_anything_is_spent(inputs: Path, tmp_path: Path) -> None:
    teacher = {"cache": {"path": str(tmp_path / "cache")}}
    with pytest.raises(RecipeError, match="as_coded, whose teacher drops out anew"):
        arm_cost(study(inputs, teacher=teacher, data={"mask_seed": 1}), ARM, 300)
