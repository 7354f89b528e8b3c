"""The runner: order, resuming, claiming a directory, and one real miniature study from shards to report."""

import json
import random

import pytest
from study_on_disk import ARMS, edit_summary, recipe_data, study_recipe, write_study
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import results
from kd_megatron.errors import NonFiniteError, RecipeError
from kd_megatron.files.manifest import model_hash
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.clock import Clock, duration
from kd_megatron.study.effective import run_recipe
from kd_megatron.study.piece import teacher_path
from kd_megatron.study.runner import pieces, run_study


def write_task(directory):
    """A task that a tiny student can learn: which of two words a sentence has more of."""
    draw = random.Random(0)
    for split, size in (("train", 60), ("dev", 30)):
        rows = []
        for _ in range(size):
            label = draw.randrange(2)
            words = [f"w{20 + label}"] * 5 + [f"w{draw.randrange(30, 200)}" for _ in range(3)]
            draw.shuffle(words)
            rows.append(json.dumps({"text": " ".join(words), "label": str(label)}))
        (directory / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real study: own teacher, two arms, two seeds, fine-tuned on one task, reported."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    write_task(inputs)
    encoder = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    recipe = tiny_study(
        inputs,
        teacher={"path": None, "train": {"encoder": encoder, "budget": {"tokens": 10 * 8 * 16}}},
        seeds=[0, 1],
        finetune={
            "tasks": [{"name": "words", "train": str(inputs / "train.jsonl"), "dev": str(inputs / "dev.jsonl")}],
            "grid": {"learning_rates": [1e-3], "batch_sizes": [16]},
            "epochs": 1,
            "max_length": 16,
            "precision": "fp32",
        },
    )
    recipe = recipe.model_copy(update={"arms": {name: recipe.arms[name] for name in ("scratch", "minilm")}})
    directory = tmp_path_factory.mktemp("study") / "tiny"
    run_study(recipe, directory, write_report)
    return recipe, directory


def test_a_real_study_ends_in_a_report(finished):
    _, directory = finished
    study = results.load(directory)
    assert study.missing == []
    assert all(0.0 <= run.task_score("words") <= 1.0 for run in study.all_runs())
    assert all(run.finetune.model_hash == run.summary.export_hash for run in study.all_runs())
    assert all(run.machines and run.finetune.tasks["words"].content_hash for run in study.all_runs())
    data = json.loads((directory / "report" / "results.json").read_text())
    assert [row["seeds"] for row in data["tables"]["scores"]] == [2, 2, 1, 1, None]  # arms, then controls
    assert {row["check"]: row["result"] for row in data["tables"]["fairness"]}["equal budgets"] == "agrees"
    assert "DIFFERS" not in {row["result"] for row in data["tables"]["fairness"]}
    teacher = layout.finished_run(directory / "teacher")
    minilm = next(row for row in data["tables"]["teacher_cost"] if row["arm"] == "minilm")
    assert minilm["amortised"] == minilm["excluded"] + teacher["flops"] / 2  # two students are taught


def test_a_student_that_diverges_is_given_up_and_the_others_go_on(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    recipe = tiny_study(inputs, seeds=[0], allow_difference=["training.learning_rate"])
    arms = {
        "vanilla_kd": recipe.arms["vanilla_kd"] | {"training.learning_rate": 1e30},
        "scratch": recipe.arms["scratch"],
    }
    recipe = recipe.model_copy(update={"arms": arms})
    with pytest.raises(NonFiniteError, match="vanilla_kd seed 0 diverged: step"):
        run_study(recipe, tmp_path / "study", write_report)
    study = results.load(tmp_path / "study")
    assert [run.arm for run in study.all_runs()] == ["scratch"]
    assert [missing for missing in study.missing if "vanilla_kd" in missing]
    assert "vanilla_kd" in (tmp_path / "study" / "report" / "report.md").read_text()


def test_a_finished_study_is_left_alone(finished):
    recipe, directory = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if "report" not in path.parts}
    run_study(recipe, directory, write_report)
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if "report" not in path.parts}
    assert {path for path in after if after[path] != before.get(path)} <= {directory, directory / "study.yaml"}


def test_a_lost_piece_alone_is_done_again(finished):
    recipe, directory = finished
    lost = layout.arm_directory(directory, "minilm", 1) / "summary.json"
    kept = layout.arm_directory(directory, "scratch", 1) / "summary.json"
    summary, untouched = json.loads(lost.read_text()), kept.stat().st_mtime_ns
    lost.unlink()
    run_study(recipe, directory, write_report)
    again = json.loads(lost.read_text())
    assert (again["steps"], again["validation"]) == (summary["steps"], summary["validation"])
    assert kept.stat().st_mtime_ns == untouched


def test_arms_alternate_within_a_seed(tmp_path):
    labels = [piece.label for piece in pieces(study_recipe(num_seeds=2), tmp_path, write_report)]
    assert labels[:5] == [f"{arm} seed 0: pretrain" for arm in ARMS] + ["scratch seed 1: pretrain"]
    assert [label.partition(":")[0] for label in labels[8:12]] == ["control untrained", "control teacher"] * 2
    assert labels[12] == "scratch seed 0: fine-tune"
    assert len(labels) == 16 + 4


def test_data_and_teacher_come_first(tmp_path):
    encoder = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    raw = recipe_data(num_seeds=1, teacher={"train": {"encoder": encoder, "budget": {"tokens": 100}}})
    raw["data"]["corpus"] = "recipes/data/debug.yaml"
    recipe = StudyRecipe.model_validate(raw)
    assert [piece.kind for piece in pieces(recipe, tmp_path, write_report)[:3]] == ["data", "teacher", "pretrain"]
    assert teacher_path(recipe, tmp_path) == str(tmp_path / "teacher" / "export")


def test_finished_pieces_are_known_from_their_files(tmp_path):
    directory = write_study(tmp_path / "s", study_recipe())
    left = [piece for piece in pieces(study_recipe(), directory, write_report) if not piece.is_finished()]
    assert {piece.of for piece in left} == {"control untrained", "control teacher"}, "as of an earlier version"
    assert not any(piece.is_finished() for piece in pieces(study_recipe(), tmp_path / "other", write_report))


def test_a_student_that_was_made_anew_is_fine_tuned_anew(tmp_path, monkeypatch):
    directory = write_study(tmp_path / "s", study_recipe(num_seeds=1))
    run, tuned = directory / "arms" / "minilm" / "seed_0", directory / "finetune" / "minilm" / "seed_0"
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    edit_summary(tuned, model_hash=model_hash(run / "export"))
    (piece,) = [
        one
        for one in pieces(study_recipe(num_seeds=1), directory, write_report)
        if one.label == "minilm seed 0: fine-tune"
    ]
    assert piece.is_finished()
    (run / "export" / "config.json").write_text('{"another": "student"}')
    assert not piece.is_finished()
    asked = []
    monkeypatch.setattr(
        "kd_megatron.finetune.grid.grid.run_grid", lambda *given: asked.append((given[2], tuned.exists()))
    )
    piece.run()
    assert asked == [(tuned, False)]
    assert (directory / "stale" / "1" / "finetune" / "minilm" / "seed_0" / "summary.json").is_file()
    tuned.mkdir()
    (tuned / "model.json").write_text('{"model": "export", "model_hash": "of the one before"}')  # begun, not finished
    piece.run()
    assert (directory / "stale" / "2" / "finetune" / "minilm" / "seed_0" / "model.json").is_file()


def test_the_report_takes_no_score_of_another_student(tmp_path):
    directory = write_study(tmp_path / "s", study_recipe(num_seeds=1, markers={"at": [0.5]}))
    edit_summary(layout.arm_directory(directory, "minilm", 0), export_hash="new")
    edit_summary(layout.finetune_directory(directory, "minilm", 0), model_hash="new")
    assert results.load(directory).missing == []
    edit_summary(layout.finetune_directory(directory, "minilm", 0), model_hash="old")
    edit_summary(layout.branch_directory(directory, "scratch", 0, 0.5), export_hash="new")
    edit_summary(layout.branch_finetune_directory(directory, "scratch", 0, 0.5), model_hash="old")
    assert results.load(directory).missing == [
        "fine-tuning of the branch at 50 % of scratch, seed 0", "fine-tuning of minilm, seed 0"
    ]  # fmt: skip
    assert results.load(directory).runs["minilm"][0].score is None


def test_unfair_arms_are_refused_before_anything_is_written(tmp_path):
    arms = ARMS | {"minilm": {"objective": "minilm", "training.learning_rate": 1e-4}}
    with pytest.raises(RecipeError, match=r"training\.learning_rate"):
        run_study(study_recipe(arms=arms), tmp_path / "s", write_report)
    assert not (tmp_path / "s").exists()


def test_a_run_does_not_depend_on_the_rest_of_the_study():
    small = run_recipe(study_recipe(num_seeds=1), "minilm", 0)
    large = run_recipe(study_recipe(num_seeds=3, notes=["other"], description="other"), "minilm", 0)
    assert small == large
    assert list(small.arms) == ["minilm"]


def test_time_left_is_estimated_from_pieces_of_the_same_kind():
    clock = Clock(["pretrain", "pretrain", "pretrain", "finetune"])
    assert clock.estimate() == ""
    clock.seconds["pretrain"], clock.num_left["pretrain"] = [100.0], 2
    assert clock.estimate() == "  about 3 min left, without finetune"
    clock.skip("finetune")
    assert clock.estimate() == "  about 3 min left"


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12240, "3.4 h")])
def test_durations(seconds, words):
    assert duration(seconds) == words
