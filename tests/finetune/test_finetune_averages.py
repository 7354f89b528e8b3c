"""GLUE's average by hand: what the leaderboard shows of a system is what its parts give here."""

import copy
from typing import Any

import pytest
from tolerances import FINETUNE_HAND_WORKED

from kd_megatron.finetune.grid.summary import averages

# Row "BERT: 24-layers, 16-heads, 1024-hidden" of the leaderboard (Devlin et al. 2019), which shows 80.5.
BERT_LARGE = {
    "CoLA": {"matthews": 60.5, "accuracy": 0.0},
    "SST-2": {"accuracy": 94.9},
    "MRPC": {"f1": 89.3, "accuracy": 85.4},
    "STS-B": {"pearson": 87.6, "spearman": 86.5},
    "QQP": {"f1": 72.1, "accuracy": 89.3},
    "MNLI": {"dev_matched/accuracy": 86.7, "dev_mismatched/accuracy": 85.9},
    "QNLI": {"accuracy": 92.7},
    "RTE": {"accuracy": 70.1},
    "WNLI": {"accuracy": 65.1},
}


def parts(metrics: dict[str, dict[str, float]], seeds: tuple[int, ...] = (0,), step: float = 0.0) -> dict[str, Any]:
    """``summary.json``'s tasks; each seed adds ``step`` to every metric, and a worse setting has zeros."""
    summary = {}
    for task, values in metrics.items():
        best = {"learning_rate": 3e-5, "batch_size": 32}
        worse = {"learning_rate": 1e-5, "batch_size": 32, "seed": 0, "metrics": dict.fromkeys(values, 0.0)}
        raised = [{name: value + step * place for name, value in values.items()} for place in range(len(seeds))]
        cells = [worse, *({**best, "seed": seed, "metrics": raised[place]} for place, seed in enumerate(seeds))]
        scores = {str(seed): 0.0 for seed in seeds}
        summary[task] = {"best_cell": best, "cells": cells, "scores": scores, "partial_split": False}
    return summary


def test_the_leaderboards_own_number():
    found = averages(parts(BERT_LARGE))["leaderboard"]
    assert round(found["average"], 1) == 80.5
    assert found["tasks"]["MNLI"] == pytest.approx(86.3, abs=FINETUNE_HAND_WORKED * 100)
    assert (found["absent"], found["partial"], found["interval"]) == ([], [], None)


def test_the_studys_seven_tasks():
    found = averages(parts(BERT_LARGE))["study"]
    by_hand = (89.3 + 60.5 + 70.1 + 94.9 + 86.7 + 72.1 + 92.7) / 7
    assert found["average"] == pytest.approx(by_hand, abs=FINETUNE_HAND_WORKED * 100)
    assert list(found["tasks"]) == ["MRPC", "CoLA", "RTE", "SST-2", "MNLI", "QQP", "QNLI"]


def test_absent_tasks_are_named_and_there_is_no_average():
    some = {name: BERT_LARGE[name] for name in ("CoLA", "SST-2", "MRPC")}
    found = averages(parts(some))
    assert found["study"]["average"] is None
    assert found["study"]["absent"] == ["RTE", "MNLI", "QQP", "QNLI"]
    assert found["leaderboard"]["absent"] == ["STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
    assert found["leaderboard"]["tasks"] == {"CoLA": 60.5, "SST-2": 94.9, "MRPC": pytest.approx(87.35)}


def test_a_lone_dev_set_of_mnli_stands_for_matched_and_not_for_both():
    tasks = parts({**copy.deepcopy(BERT_LARGE), "MNLI": {"accuracy": 70.0}})
    tasks["MNLI"]["partial_split"] = True
    found = averages(tasks)
    assert found["study"]["tasks"]["MNLI"] == 70.0
    assert found["study"]["partial"] == ["MNLI"]
    assert found["leaderboard"]["average"] is None
    assert found["leaderboard"]["absent"] == ["MNLI (its official dev sets)"]


def test_seeds_give_an_interval_of_the_average():
    found = averages(parts(BERT_LARGE, seeds=(3, 4, 5), step=1.0))["leaderboard"]
    first = found["scores"]["3"]
    assert found["scores"] == pytest.approx({"3": first, "4": first + 1, "5": first + 2})
    assert found["average"] == pytest.approx(first + 1)
    # standard deviation 1, error 1 / sqrt(3), Student's t of 2 degrees of freedom 4.3027
    half_width = 4.302652729911275 / 3**0.5
    assert found["interval"] == pytest.approx([first + 1 - half_width, first + 1 + half_width])
