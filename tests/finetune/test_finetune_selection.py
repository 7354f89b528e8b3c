import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kd_megatron.errors import DataError
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.grid.halving import eligible, num_runs, planned, setting_of
from kd_megatron.finetune.grid.outputs import read_predictions
from kd_megatron.finetune.grid.summary import summarise_task, t_interval
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.metrics import METRICS
from kd_megatron.finetune.tasks.selection import hold_out, idle_settings, selection_words
from kd_megatron.finetune.tasks.tasks import Split, Task, load_task
from kd_megatron.recipe import FinetuneRecipe, SelectionRecipe, TaskRecipe

RATES, SEEDS = (1e-5, 3e-5, 5e-5, 8e-5, 1e-4), (4, 2, 9)
CELLS = [Cell("t", rate, 16, seed) for rate in RATES for seed in SEEDS]
# With seed 4 alone, 5e-5 is last; 1e-5 and 1e-4 tie for the third place, which the earlier of them gets.
FIRST = {1e-5: 0.5, 3e-5: 0.7, 5e-5: 0.1, 8e-5: 0.6, 1e-4: 0.5}


def task_of(labels: list[float], names: tuple[str, ...]) -> Task:
    train = Split([f"text {i}" for i in range(len(labels))], None, labels)
    metric = METRICS["accuracy" if names else "pearson_spearman"]
    return Task("t", names, metric, train, {"dev": Split(["a", "b"], None, [0.0, 1.0])}, False, "")


def three_classes(num: int = 200) -> Task:
    return task_of([float(i % 10 < 3) + float(i % 10 < 1) for i in range(num)], ("a", "b", "c"))


def by_rate(scores: dict[float, float], seed: int) -> dict[Cell, float]:
    return {Cell("t", rate, 16, seed): score for rate, score in scores.items()}


def test_halving_by_hand():
    assert eligible(CELLS, {}) == [cell for cell in CELLS if cell.seed == 4]
    scores = by_rate(FIRST, 4)
    del scores[CELLS[6]]
    assert eligible(CELLS, scores) == [CELLS[6]], "nobody is judged before all are heard"
    scores = by_rate(FIRST, 4)
    second = [Cell("t", rate, 16, 2) for rate in (1e-5, 3e-5, 8e-5)]
    assert eligible(CELLS, scores) == second
    # Means over two seeds: 0.70, 0.45 and 0.55.
    scores |= by_rate({1e-5: 0.9, 3e-5: 0.2, 8e-5: 0.5}, 2)
    assert eligible(CELLS, scores) == [Cell("t", 1e-5, 16, 9), Cell("t", 8e-5, 16, 9)]
    scores |= by_rate({1e-5: 0.1, 8e-5: 0.2}, 9)
    assert eligible(CELLS, scores) == []
    plan = planned(CELLS, scores)
    assert len(plan) == num_runs(5, 3) == 5 + 3 + 2
    assert plan == [cell for cell in CELLS if cell in scores]


def test_halving_is_not_moved_by_cells_outside_the_plan():
    scores = by_rate(FIRST, 4)
    outside = {Cell("t", 5e-5, 16, 9): 1.0, Cell("t", 5e-5, 16, 2): 1.0}
    assert eligible(CELLS, scores | outside) == eligible(CELLS, scores)
    assert set(planned(CELLS, scores | outside)).isdisjoint(outside)


@pytest.mark.parametrize("num_settings", [1, 2, 3, 8])
@pytest.mark.parametrize("num_seeds", [1, 2, 3, 5])
def test_every_model_is_given_the_same_number_of_runs(num_settings: int, num_seeds: int):
    cells = [Cell("t", 1e-5 * (i + 1), 16, seed) for i in range(num_settings) for seed in range(num_seeds)]
    for model in range(5):
        draw = random.Random(model)
        scores: dict[Cell, float] = {}
        while now := eligible(cells, scores):
            cell = draw.choice(now)  # ranks finish in any order
            scores[cell] = draw.choice([0.0, 0.5, 1.0])
        assert len(scores) == len(planned(cells, scores)) == num_runs(num_settings, num_seeds)
        ran = Counter(setting_of(cell) for cell in scores)
        assert max(ran.values()) == num_seeds


def test_one_seed_is_the_whole_grid():
    assert eligible(CELLS[::3], {}) == CELLS[::3]
    assert num_runs(8, 1) == 8
    assert num_runs(8, 3) == 14


def contents(table: dict[float, tuple[float, ...]], chosen_by: dict[float, tuple[float, ...]]) -> list[dict[str, Any]]:
    cells = [
        {
            "learning_rate": rate,
            "batch_size": 16,
            "seed": seed,
            "score": score,
            "selection_score": chosen_by[rate][seed],
        }
        for rate, scores in table.items()
        for seed, score in enumerate(scores)
    ]
    return [{**cell, "key": "", "metrics": {}} for cell in cells]


def test_the_best_setting_has_the_highest_mean_over_seeds_and_is_the_first_of_equals():
    table = {1e-5: (0.5, 0.9), 3e-5: (0.75, 0.75), 5e-5: (0.75, 0.75)}
    summary = summarise_task(three_classes(), contents(table, table))
    assert summary["best_cell"] == {"learning_rate": 3e-5, "batch_size": 16}
    assert summary["scores"] == {"0": 0.75, "1": 0.75}
    assert summary["interval"] == [0.75, 0.75]
    assert (summary["num_runs"], summary["selection"]["num_settings"]) == (6, 3)


def test_the_setting_is_chosen_by_the_selection_score_and_reported_by_the_dev_score():
    table = {1e-5: (0.9, 0.9), 3e-5: (0.4, 0.6)}
    chosen_by = {1e-5: (0.1, 0.2), 3e-5: (0.3, 0.2)}
    task = hold_out(three_classes(), SelectionRecipe(on="train_slice", fraction=0.2))
    summary = summarise_task(task, contents(table, chosen_by))
    assert summary["best_cell"]["learning_rate"] == 3e-5
    assert summary["mean"] == 0.5
    assert summary["selection"] == {"rows": "held out of train", "num_rows": 40, "num_settings": 2, "score": 0.25}


def test_a_setting_that_was_given_up_is_not_reported():
    summary = summarise_task(three_classes(), contents({1e-5: (0.9,), 3e-5: (0.4, 0.6)}, {1e-5: (0.9,), 3e-5: (1, 1)}))
    assert summary["best_cell"]["learning_rate"] == 3e-5
    summary = summarise_task(three_classes(), contents({1e-5: (0.9,), 3e-5: (0.4, 0.6)}, {1e-5: (1,), 3e-5: (0, 0)}))
    assert summary["best_cell"]["learning_rate"] == 3e-5
    assert summary["num_runs"] == 3


def test_t_interval_by_hand():
    # mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027
    low, high = t_interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert t_interval([0.7]) is None


@pytest.mark.parametrize("task", [three_classes(), task_of([float(i * 7 % 100) for i in range(200)], ())])
def test_a_slice_is_taken_away_from_train_nested_and_stratified(task: Task):
    before: set[str] = set()
    for fraction, size in ((0.1, 20), (0.25, 50), (0.4, 80)):
        held = hold_out(task, SelectionRecipe(on="train_slice", fraction=fraction))
        assert held.selection is not None
        assert (len(held.selection), len(held.train)) == (size, 200 - size)
        rows = set(held.selection.first)
        assert rows.isdisjoint(held.train.first)
        assert rows | set(held.train.first) == set(task.train.first)
        assert before < rows
        before = rows
        labels = dict(zip(task.train.first, task.train.labels, strict=True))
        assert held.selection.labels == [labels[text] for text in held.selection.first]
        for low, high in ((0.0, 0.0), (1.0, 1.0), (0.0, 49.0)):  # a tenth of a class, or of a half of the values
            inside = sum(low <= label <= high for label in held.selection.labels)
            assert abs(inside - fraction * sum(low <= label <= high for label in task.train.labels)) <= 1
        assert held.note == f"train: {size} of 200 rows held out to select by"
        assert held.content_hash() != task.content_hash()
    assert hold_out(task, SelectionRecipe()) is task


def test_a_slice_keeps_a_pair_together():
    task = three_classes()
    pairs = Split(task.train.first, [text.replace("text", "other") for text in task.train.first], task.train.labels)
    held = hold_out(
        Task("t", task.label_names, task.metric, pairs, task.devs, False, "n"), SelectionRecipe(on="train_slice")
    )
    for split in (held.train, held.selection):
        assert split is not None
        assert split.second == [text.replace("text", "other") for text in split.first]
    assert held.note.startswith("n; train: 20 of 200")


@pytest.mark.parametrize(
    ("labels", "given"), [([0.0, 1.0] * 4, "are 0 rows"), ([0.0] * 30 + [1.0], "all with one label")]
)
def test_a_slice_that_tells_nothing_is_refused(labels: list[float], given: str):
    with pytest.raises(DataError, match=given):
        hold_out(task_of(labels, ("a", "b")), SelectionRecipe(on="train_slice", fraction=0.1))


def test_the_words_say_where_the_setting_was_chosen():
    assert "selected on the dev rows it is read from" in selection_words(8, SelectionRecipe())
    assert "held out of train" in selection_words(8, SelectionRecipe(on="train_slice"))
    assert "nothing was selected" in selection_words(1, SelectionRecipe())


@pytest.mark.parametrize(
    ("rates", "seeds", "halving", "on", "words"),
    [
        ([1e-5], [0, 1], False, "train_slice", ["selection.on=train_slice holds 10% of the training rows out"]),
        ([1e-5, 1e-5], [0, 1], True, "dev", ["gives nothing up with one setting"]),
        ([1e-5, 3e-5], [0], True, "train_slice", ["gives nothing up with one seed"]),
        ([1e-5, 3e-5], [0, 1], True, "train_slice", []),
    ],
)
def test_what_does_nothing_is_said(rates: list[float], seeds: list[int], halving: bool, on: str, words: list[str]):
    raw = {"tasks": [{"name": "RTE"}], "grid": {"learning_rates": rates, "batch_sizes": [8]}, "seeds": seeds}
    found = idle_settings(FinetuneRecipe.model_validate({**raw, "halving": halving, "selection": {"on": on}}))
    assert len(found) == len(words)
    assert all(part in said for part, said in zip(words, found, strict=True))


def test_a_grid_that_halves_and_selects_on_a_slice_of_train(
    tiny_model: Path, review_files: tuple[Path, Path], tmp_path: Path
):
    train, dev = map(str, review_files)
    raw: dict[str, Any] = {
        "tasks": [{"name": "reviews", "train": train, "dev": dev}],
        "grid": {"learning_rates": [1e-5, 3e-3, 1e-4], "batch_sizes": [8]},
        "seeds": [5, 3],
        "crossed_seeds": True,  # with seeds of its own, this model learns nothing of so few rows at any of these rates
        "selection": {"on": "train_slice", "fraction": 0.25},
        "epochs": 3,
        "max_length": 16,
        "precision": "fp32",
        "tensorboard": False,
    }
    summary = run_grid(tiny_model, FinetuneRecipe.model_validate({**raw, "halving": True}), tmp_path / "out")
    task = summary["tasks"]["reviews"]
    assert (task["num_train"], task["selection"]["num_rows"], task["num_runs"]) == (72, 24, 3 + 2)
    assert task["best_cell"]["learning_rate"] == 3e-3
    assert list(task["scores"]) == ["5", "3"]
    assert summary["selection"] == "best of 3 settings, selected on rows held out of train"
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("reviews/cells/*.json")}
    assert len(cells) == 5
    held = hold_out(load_task(TaskRecipe(**raw["tasks"][0]), None), SelectionRecipe(**raw["selection"]))
    assert held.selection is not None
    for name, cell in cells.items():
        outputs = read_predictions(tmp_path / "out" / "reviews" / "cells" / f"{name}.npz")
        assert set(outputs) == {"dev", "selection"}
        right = (outputs["selection"].argmax(1) == held.selection.labels).mean()
        assert cell["selection_score"] == pytest.approx(right)
    whole = run_grid(tiny_model, FinetuneRecipe.model_validate(raw), tmp_path / "out")["tasks"]["reviews"]
    assert whole["num_runs"] == 6
    assert len(list((tmp_path / "out").glob("reviews/cells/*.json"))) == 6, "what halving ran is not run again"
