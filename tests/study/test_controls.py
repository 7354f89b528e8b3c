"""The untrained student and the teacher stand below the arms of every study, measured as students are."""

import json
from pathlib import Path

import pytest
import torch
from processes import run
from test_runner import write_task
from tiny_study import tiny_study, write_inputs
from tolerances import PARITY_FLOAT32_RELATIVE
from transformers import AutoModelForMaskedLM

from kd_megatron.analysis import results
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.runner import pieces, run_study

WORKER = str(Path(__file__).parent / "controls_worker.py")
ON_SEVERAL = {  # training and teacher of a study on two processes
    "zero0": ({"ds_config": "zero0"}, {}),
    "zero3": ({"ds_config": "zero3"}, {}),
    "teacher in pieces": ({"ds_config": "zero0"}, {"partition": True}),
}


def recipe_of(inputs: Path, **changes: object) -> StudyRecipe:
    finetune = {
        "tasks": [{"name": "words", "train": str(inputs / "train.jsonl"), "dev": str(inputs / "dev.jsonl")}],
        "grid": {"learning_rates": [1e-3], "batch_sizes": [16]},
        "seeds": [0, 1, 2],
        "epochs": 1,
        "max_length": 16,
        "precision": "fp32",
    }
    recipe = tiny_study(inputs, **{"seeds": [0, 1], "finetune": finetune, **changes})
    return recipe.model_copy(update={"arms": {name: recipe.arms[name] for name in ("scratch", "minilm")}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRecipe, Path]:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_task(inputs)
    recipe = recipe_of(inputs)
    directory = tmp_path_factory.mktemp("study") / "tiny"
    run_study(recipe, directory, write_report)
    return recipe, directory


def test_a_real_study_has_them(finished: tuple[StudyRecipe, Path]) -> None:
    _, directory = finished
    study = results.load(directory)
    assert (study.missing, study.missing_controls) == ([], [])
    untrained, teacher = study.controls["untrained"], study.controls["teacher"]
    for control in (untrained, teacher):
        assert control.summary.own_loss > 0
        assert control.summary.probe_loss > 0
        assert 0.0 <= control.task_score("words") <= 1.0
        assert control.finetune.model_hash == control.summary.export_hash
    assert list(untrained.finetune.tasks["words"].scores) == ["0", "1", "2"]
    assert list(teacher.finetune.tasks["words"].scores) == ["0"], "once, with the first seed"
    parameters = {run.summary.parameters for run in study.all_runs()}
    assert parameters == {untrained.summary.parameters}
    used = [run.tasks["words"].used_seeds for run in study.all_runs()]
    used += [control.finetune.tasks["words"].used_seeds for control in (untrained, teacher)]
    page = (directory / "report" / "report.md").read_text(encoding="utf-8")
    for label in ("untrained student (control)", "teacher (control)", "majority class (control)"):
        assert f"| {label} |" in page
    assert "| words | accuracy |" in page
    assert "Control rows are missing" not in page
    assert len(set().union(*used)) == sum(map(len, used)) == 4 * 3 + 3 + 1, "no two models share a seed"


def test_the_untrained_student_has_the_first_weights_of_all_arms(finished: tuple[StudyRecipe, Path]) -> None:
    """minilm never reaches the top of its last layer, which so is as it began."""
    _, directory = finished
    first = AutoModelForMaskedLM.from_pretrained(layout.control_directory(directory, "untrained") / "export")
    trained = AutoModelForMaskedLM.from_pretrained(layout.arm_directory(directory, "minilm", 0) / "export")
    weights, others = first.state_dict(), trained.state_dict()
    summary = json.loads((layout.arm_directory(directory, "minilm", 0) / "summary.json").read_text())
    untouched = summary["untrained_parameters"]
    assert untouched
    assert all(torch.equal(weights[name], others[name]) for name in untouched)
    assert not torch.equal(
        weights["bert.embeddings.word_embeddings.weight"], others["bert.embeddings.word_embeddings.weight"]
    )


def test_they_are_resumed_like_any_piece(finished: tuple[StudyRecipe, Path]) -> None:
    recipe, directory = finished
    assert all(piece.is_finished() for piece in pieces(recipe, directory, write_report))
    where = layout.control_directory(directory, "teacher")
    before = json.loads((where / "summary.json").read_text())
    (where / "summary.json").unlink()
    left = [piece.label for piece in pieces(recipe, directory, write_report) if not piece.is_finished()]
    assert left == ["control teacher: measure"]
    study = results.load(directory)
    assert (study.missing, study.missing_controls) == ([], ["the teacher"])
    run_study(recipe, directory, write_report)
    assert json.loads((where / "summary.json").read_text())["validation"] == before["validation"]


def test_one_of_another_model_is_measured_anew(finished: tuple[StudyRecipe, Path]) -> None:
    recipe, directory = finished
    path = layout.control_directory(directory, "untrained") / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"made_of": summary["made_of"] | {"seed": 99}}))
    left = [piece.label for piece in pieces(recipe, directory, write_report) if not piece.is_finished()]
    assert left == ["control untrained: measure"]
    path.write_text(json.dumps(summary))


def test_they_come_before_the_students_fine_tuning_and_may_be_switched_off(tmp_path: Path) -> None:
    inputs = tmp_path
    labels = [piece.label for piece in pieces(recipe_of(inputs), tmp_path / "s", write_report)]
    assert labels[4:9] == [
        "control untrained: measure",
        "control teacher: measure",
        "control untrained: fine-tune",
        "control teacher: fine-tune",
        "scratch seed 0: fine-tune",
    ]
    off = recipe_of(inputs, controls={"untrained": False, "teacher": True}, finetune=None)
    labels = [piece.label for piece in pieces(off, tmp_path / "s", write_report)]
    assert labels[4:] == ["control teacher: measure"]
    alone = recipe_of(inputs, teacher=None, finetune=None)
    assert alone.wanted_controls == ["untrained"]


@pytest.mark.parametrize("case", ON_SEVERAL)
def test_several_processes_find_the_same(finished: tuple[StudyRecipe, Path], tmp_path: Path, case: str) -> None:
    recipe, directory = finished
    training, teacher = ON_SEVERAL[case]
    assert recipe.teacher is not None
    several = recipe.model_copy(
        update={
            "arms": {"scratch": recipe.arms["scratch"]},
            "seeds": [0],
            "training": recipe.training.model_copy(update={"micro_batch_size": 4, **training}),
            "teacher": recipe.teacher.model_copy(update=teacher),
        }
    )
    (tmp_path / "recipe.json").write_text(several.model_dump_json())
    run([WORKER, str(tmp_path / "study"), str(tmp_path / "recipe.json")], world_size=2)
    exports = [layout.control_directory(where, "untrained") / "export" for where in (directory, tmp_path / "study")]
    first, others = (AutoModelForMaskedLM.from_pretrained(where).state_dict() for where in exports)
    assert all(torch.equal(weight, others[name]) for name, weight in first.items())
    alone, together = (results.load(where).controls for where in (directory, tmp_path / "study"))
    for name, control in together.items():
        assert control.missing == []
        assert control.summary.export_hash == alone[name].summary.export_hash
        assert control.summary.own_loss == pytest.approx(alone[name].summary.own_loss, rel=PARITY_FLOAT32_RELATIVE)
        assert control.summary.probe_loss == pytest.approx(alone[name].summary.probe_loss, rel=PARITY_FLOAT32_RELATIVE)
        found, before = (one[name].finetune.tasks["words"] for one in (together, alone))
        assert found.used_seeds == before.used_seeds
