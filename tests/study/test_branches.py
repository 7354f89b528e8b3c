"""Branches at markers of the budget: what they train, that their run is none the wiser, resuming, and what is shown."""

import time
from pathlib import Path
from typing import Any

import processes
import pytest
import study_on_disk
import torch
import yaml
from matplotlib import pyplot
from pydantic import ValidationError
from safetensors.torch import load_file
from test_runner import write_task
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.analysis import curves, laws, results
from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.files.records import read_metrics
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.study import curve_figures as figures
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.edits import compare
from kd_megatron.study.runner import pieces, run_study
from kd_megatron.training.branch import leave
from kd_megatron.training.run import pretrain

STEP_TOKENS = 8 * 16
MARKERS = {"at": [0.7, 0.4, 1.0], "decay": 0.25}  # of 20 steps: branches run from 6 (5.25) to 8, and from 11 to 14
FINETUNE = {"grid": {"learning_rates": [1e-3], "batch_sizes": [16]}, "epochs": 1, "max_length": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_task(inputs)
    return inputs


def study(inputs: Path, markers: dict[str, Any] | None, **changes: Any) -> StudyRecipe:
    """Scratch alone, with dropout, which shows a wrong random state."""
    student = {"hidden_dropout": 0.1}
    recipe = tiny_study(inputs, markers=markers, student=student, **changes)
    return recipe.model_copy(update={"arms": {"scratch": ARMS["scratch"]}})


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study") / "s"
    task = {"name": "words", "train": str(inputs / "train.jsonl"), "dev": str(inputs / "dev.jsonl")}
    run_study(study(inputs, MARKERS, finetune={"tasks": [task], **FINETUNE}), directory, write_report)
    return directory


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_is_the_same_with_branches_and_without(inputs: Path, finished: Path, tmp_path: Path) -> None:
    pretrain(study(inputs, None), "scratch", 0, tmp_path / "run", None)
    assert same_weights(tmp_path / "run", layout.arm_directory(finished, "scratch", 0))


def test_a_branch_spends_its_share_and_brings_the_rate_down(finished: Path) -> None:
    run = results.load(finished).runs["scratch"][0]
    trunk = {row["step"]: row["learning_rate"] for row in run.metrics if "learning_rate" in row}
    assert [marker.fraction for marker in run.branches] == [0.4, 0.7]
    for marker, steps in zip(run.branches, ([7, 8], [12, 13, 14]), strict=True):
        assert marker.summary.tokens == steps[-1] * STEP_TOKENS
        assert marker.decay_tokens == len(steps) * STEP_TOKENS
        where = layout.branch_directory(finished, "scratch", 0, marker.fraction)
        rates = {row["step"]: row["learning_rate"] for row in read_metrics(where) if "learning_rate" in row}
        left, ends = steps[0] - 1, steps[-1]
        expected = {step: trunk[left + 1] * (ends - step + 1) / (ends - left) for step in steps}
        assert rates == pytest.approx(expected)  # the first step of a branch has the run's own rate
        assert marker.summary.budget.spent == marker.summary.budget.limit == ends * STEP_TOKENS
        recorded = layout.finished_run(where)
        assert recorded is not None
        assert recorded["ledger"]["overshoot"] == 0
        assert not same_weights(where, layout.arm_directory(finished, "scratch", 0))


def test_branches_are_validated_and_fine_tuned_like_the_last_student(finished: Path) -> None:
    found = results.load(finished)
    assert found.missing == []
    run = found.runs["scratch"][0]
    tasks = [marker.finetune.tasks["words"] for marker in run.branches if marker.finetune]
    assert len(tasks) == 2
    assert run.finetune is not None
    assert {task.num_dev for task in tasks} == {run.finetune.tasks["words"].num_dev}
    assert [reading.is_decayed for reading in curves.score_readings(run, "words")] == [True, True, True]
    losses = curves.loss_readings(found, run)
    assert [(reading.fraction, reading.is_decayed) for reading in losses] == [
        (0.4, True), (0.5, False), (0.7, True), (1.0, True)
    ]  # fmt: skip
    assert len(curves.readings(found, run, "probe_loss")) == 3  # the run as it was half-way is no student of half
    report = (finished / "report" / "report.md").read_text()
    assert "5 tokens in all" not in report
    assert f"{5 * STEP_TOKENS} tokens in all are charged to no arm" in report


def test_checkpoints_kept_for_branches_go_when_all_are_finished(finished: Path) -> None:
    trunk = layout.arm_directory(finished, "scratch", 0)
    assert [path.name for path in checkpoint.published(trunk / "checkpoints")] == ["step_00000015", "step_00000020"]
    assert not list(trunk.glob("markers/*/checkpoints"))


def test_a_lost_branch_of_a_finished_run_is_a_clear_error(finished: Path) -> None:
    trunk = layout.arm_directory(finished, "scratch", 0)
    with pytest.raises(OutputError, match=r"no checkpoint of 30 % of the budget.*\n?.*|remove .*seed_0"):
        leave(trunk, 0.3, 0.4)


def test_a_killed_branch_goes_on_to_the_same_bits(
    inputs: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = study(inputs, MARKERS, training={"checkpoint_every_steps": 1})
    write = checkpoint.write

    def full(directory: Path, about: checkpoint.About, state: Any) -> Path:
        if directory.parent.name == "0.7" and about.step == 13:
            raise OSError(28, "No space left on device")
        return write(directory, about, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", full)
        with pytest.raises(OutputError, match="no space left"):
            run_study(recipe, tmp_path / "s", write_report)
    where = layout.branch_directory(tmp_path / "s", "scratch", 0, 0.7)
    assert not (where / "summary.json").exists()
    run_study(recipe, tmp_path / "s", write_report)
    assert same_weights(where, layout.branch_directory(finished, "scratch", 0, 0.7))
    steps = [row["step"] for row in read_metrics(where) if "learning_rate" in row]
    assert steps == [12, 13, 14]  # nothing is told twice


@pytest.mark.long
def test_kill_9_in_a_branch_loses_nothing(inputs: Path, tmp_path: Path) -> None:
    recipe = study(
        inputs,
        {"at": [0.6], "decay": 0.8},
        training={"checkpoint_every_steps": 2},
        budget={"tokens": 100 * STEP_TOKENS},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    command = ["-m", "kd_megatron", "study", str(tmp_path / "recipe.yaml"), "--output"]
    branches = {name: layout.branch_directory(tmp_path / name, "scratch", 0, 0.6) for name in ("killed", "whole")}
    (process,) = processes.start([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + 200
    while len(read_metrics(branches["killed"])) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (branches["killed"] / "summary.json").exists(), "it was not killed within the branch"
    for name in branches:
        (process,) = processes.start([*command, str(tmp_path / name)])
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    assert same_weights(branches["killed"], branches["whole"])
    steps = [row["step"] for row in read_metrics(branches["killed"]) if "learning_rate" in row]
    assert steps == list(range(13, 61))


def test_without_decay_the_student_is_taken_as_it_is(inputs: Path, tmp_path: Path) -> None:
    recipe = study(inputs, {"at": [0.5], "decay": 0.0}, training={"keep_at": [0.5]})
    run_study(recipe, tmp_path / "s", write_report)
    found = results.load(tmp_path / "s")
    (marker,) = found.runs["scratch"][0].branches
    assert (marker.summary.tokens, marker.decayed, marker.decay_tokens) == (10 * STEP_TOKENS, False, 0)
    kept = layout.arm_directory(tmp_path / "s", "scratch", 0) / "checkpoints" / "step_00000010"
    was = load_file(kept / "weights.safetensors")  # stays: the recipe's own keep_at asks for it
    own = weights(layout.branch_directory(tmp_path / "s", "scratch", 0, 0.5))
    embeddings = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(own[embeddings], was[f"student.model.{embeddings}"])
    half = next(row for row in found.runs["scratch"][0].metrics if row.get("validation/probe_mlm_loss"))
    assert marker.probe_loss == half["validation/probe_mlm_loss"]
    assert "learning rate had not come down" in (tmp_path / "s" / "report" / "report.md").read_text()


def test_branches_follow_their_run_and_fine_tuning_their_student(tmp_path: Path) -> None:
    recipe = study_on_disk.study_recipe(num_seeds=1, markers={"at": [0.5], "decay": 0.1})
    labels = [piece.label for piece in pieces(recipe, tmp_path, write_report)]
    assert labels[:3] == [
        "scratch seed 0: pretrain", "scratch seed 0: branch at 50 % of the budget", "vanilla_kd seed 0: pretrain"
    ]  # fmt: skip
    assert labels[12:14] == ["scratch seed 0: fine-tune", "scratch seed 0: fine-tune its branch at 50 %"]
    alone = study_on_disk.study_recipe(num_seeds=1, markers={"at": [0.5], "decay": 0.1, "finetune": False})
    assert len(pieces(alone, tmp_path, write_report)) == len(labels) - 4
    assert compare(alone, recipe).arms == []  # fine-tuning them may be added later
    assert compare(recipe, study_on_disk.study_recipe(num_seeds=1)).arms == list(recipe.arms)


def test_curves_laws_and_figures_are_of_branches(tmp_path: Path) -> None:
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
    recipe = study_on_disk.study_recipe(arms=arms, markers={"at": [0.1, 0.2, 0.4, 0.7]})
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    found = results.load(directory)
    points = laws.points([found], "scratch")
    assert len(points) == 3 * 5
    assert all(point.is_final for point in points)
    for draw in (figures.score_against_budget, figures.cola_against_tokens, figures.loss_against_budget):
        figure = draw(found)
        assert figure is not None
        (mean,) = [line for line in figure.axes[0].lines if line.get_label() == "minilm"]
        assert len(mean.get_xdata()) == 5
        pyplot.close(figure)
    assert any("share what came before" in caveat for caveat in caveats(found, [], []))
    (layout.branch_directory(directory, "minilm", 1, 0.4) / "summary.json").unlink()
    assert results.load(directory).missing == ["branch at 40 % of minilm, seed 1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"markers": {"at": [0.05], "decay": 0.1}}, "within the warm-up"),
        ({"markers": {"at": [0.5]}, "training": {"schedule": "constant"}}, "never comes down"),
        ({"markers": {"at": [0.5], "decay": 0.2}, "training": {"schedule": "wsd"}}, "another share of its budget"),
        ({"markers": {"at": []}}, "at least 1 item"),
        ({"markers": {"at": [1.2]}}, "less than or equal to 1"),
        ({"markers": {"at": [0.5], "decay": 1.0}}, "less than 1"),
    ],
)
def test_markers_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        study_on_disk.study_recipe(**changes)
