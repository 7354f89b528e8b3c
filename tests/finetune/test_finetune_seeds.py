"""Fine-tuning draws from seeds of the model's own, keeps the numbers, and says where it ended at the majority class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoder import make_model

from kd_megatron.finetune.cell.batches import encode_task
from kd_megatron.finetune.cell.model import load_tokenizer
from kd_megatron.finetune.cell.train import count_steps, run_cell
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.grid.jobs import list_jobs
from kd_megatron.finetune.grid.seeds import own_seed, used_seeds
from kd_megatron.finetune.grid.summary import summarise_task
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.majority import is_collapsed, majority_score
from kd_megatron.finetune.tasks.metrics import METRICS
from kd_megatron.finetune.tasks.tasks import Split, Task, load_task
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe


def recipe_of(train: Path, dev: Path, **changes: Any) -> FinetuneRecipe:
    raw: dict[str, Any] = {
        "tasks": [{"name": "reviews", "train": str(train), "dev": str(dev), "max_train_examples": 40}],
        "grid": {"learning_rates": [3e-3], "batch_sizes": [8]},
        "epochs": 1,
        "max_length": 16,
        "precision": "fp32",
        "tensorboard": False,
    }
    return FinetuneRecipe.model_validate({**raw, **changes})


def made_up(metric: str, train: list[float], dev: list[float]) -> Task:
    """A task with these labels."""
    splits = [Split([f"text {number}" for number in range(len(labels))], None, labels) for labels in (train, dev)]
    names = () if METRICS[metric].regression else ("no", "yes")
    return Task("made_up", names, METRICS[metric], splits[0], {"dev": splits[1]}, False, "")


def test_a_seed_is_a_function_of_the_student_and_the_listed_one(review_files: tuple[Path, Path]):
    recipe = recipe_of(*review_files, seeds=[0, 1])
    students = [
        "s/minilm/seed_0/1",
        "s/minilm/seed_1/1",
        "s/scratch/seed_0/1",
        "s/minilm/seed_0/0.5",
        "t/minilm/seed_0/1",
    ]
    used = [number for whose in students for number in used_seeds(recipe, whose).values()]
    assert len(set(used)) == 2 * len(students)
    assert used_seeds(recipe, students[0]) == {0: used[0], 1: used[1]}
    assert all(0 <= number < 2**32 for number in used)
    crossed = recipe_of(*review_files, seeds=[0, 1], crossed_seeds=True)
    assert used_seeds(crossed, students[0]) == {0: 0, 1: 1}


def test_cells_of_two_students_are_other_cells_unless_seeds_are_crossed(
    review_files: tuple[Path, Path], tmp_path: Path
):
    def key(whose: str, **changes: Any) -> str:
        recipe = recipe_of(*review_files, **changes)
        return list_jobs(load_task(recipe.tasks[0], None), recipe, "hash", tmp_path, whose)[0].key

    assert key("a") != key("b")
    assert key("a", crossed_seeds=True) == key("b", crossed_seeds=True)
    assert key("a", inclusion={"above_majority": 0.2}) == key("a")
    assert key("a", min_steps=None) == key("a") != key("a", min_steps=9)


def test_records_hold_the_number_used_beside_the_listed_one(
    tiny_model: Path, review_files: tuple[Path, Path], tmp_path: Path
):
    recipe = recipe_of(*review_files, seeds=[7])
    tasks = {}
    for whose in ("one", "another"):
        summary = run_grid(tiny_model, recipe, tmp_path / whose, whose)
        tasks[whose] = summary["tasks"]["reviews"]
        (path,) = (tmp_path / whose).glob("reviews/cells/*.json")
        content = json.loads(path.read_text())
        (cell,) = tasks[whose]["cells"]
        assert (content["seed"], content["used_seed"]) == (7, own_seed(whose, 7)) == (cell["seed"], cell["used_seed"])
        assert list(tasks[whose]["scores"]) == ["7"]
        assert content["majority_score"] == tasks[whose]["majority_score"] == 0.5
        assert content["collapsed"] == cell["collapsed"]
        assert tasks[whose]["num_collapsed"] == int(cell["collapsed"])
    curves = [json.loads(next((tmp_path / w).glob("reviews/cells/*.json")).read_text()) for w in tasks]
    assert curves[0]["learning_curve"] != curves[1]["learning_curve"], "head and order are the students' own"
    assert tasks["one"]["content_hash"] == tasks["another"]["content_hash"], "rows are common to all"


def test_one_model_alone_is_seeded_by_its_files(tiny_model: Path, review_files: tuple[Path, Path], tmp_path: Path):
    recipe = recipe_of(*review_files, seeds=[0])
    summary = run_grid(tiny_model, recipe, tmp_path / "out")
    (cell,) = summary["tasks"]["reviews"]["cells"]
    assert cell["used_seed"] == own_seed(summary["model_hash"], 0)
    other = run_grid(make_model(tmp_path / "other", seed=9), recipe, tmp_path / "out_of_other")
    assert other["tasks"]["reviews"]["cells"][0]["used_seed"] != cell["used_seed"]


@pytest.mark.parametrize(
    ("metric", "train", "dev", "expected"),
    [
        ("accuracy", [1, 1, 0], [1, 0, 0, 0], 0.25),  # of the commonest label in train, not in dev
        ("f1_accuracy", [1, 1, 0], [1, 1, 0, 0], (2 / 3 + 0.5) / 2),
        ("f1_accuracy", [0, 0, 1], [1, 1, 0, 0], 0.25),
        ("matthews", [1, 1, 0], [1, 0, 1, 1], 0.0),
        ("pearson_spearman", [1.5, 2.5, 4.0], [1.0, 2.0, 3.0], 0.0),
    ],
)
def test_the_majority_class_is_scored_by_the_tasks_own_metric(
    metric: str, train: list[float], dev: list[float], expected: float
):
    assert majority_score(made_up(metric, train, dev)) == pytest.approx(expected, rel=1e-12)


def test_a_collapse_is_a_constant_answer_or_the_majoritys_score():
    task = made_up("accuracy", [1, 1, 0], [1, 0, 1, 1])
    yes, no, right, as_many = ([1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 1, 1])
    found = {
        name: is_collapsed(task, float(np.mean(np.array(answer) == [1, 0, 1, 1])), np.eye(2)[answer])
        for name, answer in (("yes", yes), ("no", no), ("right", right), ("as_many", [0, 0, 1, 1]), ("other", as_many))
    }
    # the majority class has three of four right, and so has an answer that is wrong in another row
    assert found == {"yes": True, "no": True, "right": False, "as_many": True, "other": False}


def test_values_that_hardly_vary_are_constant():
    task = made_up("pearson_spearman", [0.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    spread = np.std([0.0, 2.0, 4.0])
    assert is_collapsed(task, 0.9, np.array([2.0, 2.0 + 0.005 * spread, 2.0]))
    assert not is_collapsed(task, 0.9, np.array([1.5, 2.0, 2.5]))


def test_cells_of_an_earlier_version_are_summed_up_as_well():
    task = made_up("accuracy", [1, 1, 0], [1, 0, 1, 1])
    old = {"learning_rate": 1e-3, "batch_size": 8, "seed": 3, "key": "k", "metrics": {}}
    summary = summarise_task(task, [{**old, "score": 0.75, "selection_score": 0.75}])
    assert (summary["majority_score"], summary["num_collapsed"]) == (0.75, 1)
    assert (summary["cells"][0]["used_seed"], summary["cells"][0]["collapsed"]) == (3, True)


def test_a_floor_in_steps_holds_where_epochs_have_fewer(tiny_model: Path, review_files: tuple[Path, Path]):
    short, floor = recipe_of(*review_files), recipe_of(*review_files, min_steps=23, evaluate_every_epochs=2)
    cell = Cell("reviews", 3e-3, 8, 0)
    assert [count_steps(40, cell, recipe) for recipe in (short, floor)] == [5, 23]
    assert count_steps(400, cell, floor) == 50
    task = load_task(TaskRecipe(**floor.tasks[0].model_dump()), None)
    encoded = encode_task(task, load_tokenizer(tiny_model, 16), 16)
    content = run_cell(tiny_model, encoded, cell, floor, torch.device("cpu")).content
    assert (content["num_steps"], content["num_examples"]) == (23, 23 * 8)
    assert [point["step"] for point in content["dev_curve"]] == [10, 20], "every two epochs of five steps"
    rates = [point["learning_rate"] for point in content["learning_curve"]]
    assert rates[-1] == min(rates) < max(rates), "warm-up and decay are over all steps"
