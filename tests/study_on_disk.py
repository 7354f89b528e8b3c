"""Writes the directory that a study leaves behind: only files, in the schema of the real ones, with chosen numbers."""

import json
from pathlib import Path
from typing import Any

import yaml

from kd_megatron.objectives.of_the_teacher import learns_from_teacher
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.layout import arm_directory, branch_directory, branch_finetune_directory

ARMS = {
    "scratch": {"objective": "scratch"},
    "vanilla_kd": {"objective": "vanilla_kd", "temperature": 2.0},
    "minilm": {"objective": "minilm", "num_relation_heads": 12},
    "tinybert": {"objective": "tinybert"},
}
STUDENT_FLOPS, TEACHER_FLOPS, LOSS_FLOPS = 3.0e7, 1.5e7, 2.0e6  # per token; the last two not in scratch
BUDGET_FLOPS = 6.0e13
TOKENS_PER_STEP = 64 * 128
TEACHER_COST = 9.0e14

BY_SCORE = {"measure": "score", "students": 3}  # a protocol that fixes three students of an arm

SCORES = {  # arm -> task -> seed -> score in [0, 1]
    "scratch": {"CoLA": [0.20, 0.26, 0.23], "SST-2": [0.80, 0.82, 0.81]},
    "vanilla_kd": {"CoLA": [0.24, 0.22, 0.26], "SST-2": [0.80, 0.84, 0.82]},
    "minilm": {"CoLA": [0.31, 0.35, 0.33], "SST-2": [0.84, 0.86, 0.86]},
    "tinybert": {"CoLA": [0.29, 0.27, 0.34], "SST-2": [0.83, 0.86, 0.84]},
}
PROBE = {
    "scratch": [3.90, 3.86, 3.88],
    "vanilla_kd": [3.96, 3.90, 3.95],
    "minilm": [4.10, 4.05, 4.08],
    "tinybert": [4.2, 4.1, 4.17],
}


def recipe_data(num_seeds: int = 3, arms: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A study recipe as plain data."""
    return {
        "kind": "study",
        "name": "planted",
        "description": "Numbers chosen by hand, to check the report.",
        "data": {"shards": [{"path": "data/wiki"}]},
        "student": {"hidden_size": 384, "num_layers": 3, "num_attention_heads": 12, "intermediate_size": 1536},
        "teacher": {"path": "teachers/big", "cost_flops": TEACHER_COST, "cost_source": "its authors' model card"},
        "arms": arms or ARMS,
        "budget": {"flops": BUDGET_FLOPS},
        "training": {"global_batch_size": 64},
        "seeds": list(range(num_seeds)),
        "finetune": {
            "tasks": [{"name": "CoLA"}, {"name": "SST-2"}],
            "glue_path": "glue",
            "grid": {"learning_rates": [3e-5, 1e-4], "batch_sizes": [32]},
        },
        "notes": ["The texts keep their own licences."],
        **changes,
    }


def study_recipe(**arguments: Any) -> StudyRecipe:
    """The same, validated."""
    return StudyRecipe.model_validate(recipe_data(**arguments))


def write_study(directory: Path, recipe: StudyRecipe, finetuned: bool = True) -> Path:
    """Write a finished study at ``directory``."""
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    for arm in recipe.arms:
        for seed in recipe.seeds:
            write_run(directory / "arms" / arm / f"seed_{seed}", recipe, arm, seed)
            if finetuned and recipe.finetune:
                write_finetune(directory / "finetune" / arm / f"seed_{seed}", arm, seed)
            if recipe.markers:
                write_branches(directory, recipe, arm, seed)
    return directory


def write_branches(directory: Path, recipe: StudyRecipe, arm: str, seed: int) -> None:
    """The finished branches of one run, each with its fine-tuning; shares of what the run spent."""
    assert recipe.markers is not None
    trunk = json.loads((arm_directory(directory, arm, seed) / "summary.json").read_text())
    for fraction in recipe.markers.branches:
        where = branch_directory(directory, arm, seed, fraction)
        where.mkdir(parents=True)
        left_at = recipe.markers.start(fraction)
        facts = {"fraction": fraction, "left_at": left_at, "decay_steps": 10, "decayed": recipe.markers.decay > 0}
        spent = {key: trunk[key] * fraction for key in ("flops", "tokens", "hours")}
        loss = {"probe_mlm_loss": PROBE[arm][seed] + 0.3 * (1 - fraction)}
        (where / "summary.json").write_text(json.dumps(trunk | spent | {"branch": facts, "validation": loss}))
        if recipe.finetune and recipe.markers.finetune:
            write_finetune(branch_finetune_directory(directory, arm, seed, fraction), arm, seed)


def write_run(directory: Path, recipe: StudyRecipe, arm: str, seed: int) -> None:
    """One finished pretraining run."""
    directory.mkdir(parents=True)
    teacher_flops = 0.0 if arm == "scratch" else TEACHER_FLOPS
    loss_flops = 0.0 if arm == "scratch" else LOSS_FLOPS
    per_token = STUDENT_FLOPS + teacher_flops + loss_flops
    steps = -int(-BUDGET_FLOPS // (per_token * TOKENS_PER_STEP))
    tokens = steps * TOKENS_PER_STEP
    flops = {"student": STUDENT_FLOPS * tokens, "teacher": teacher_flops * tokens, "loss": loss_flops * tokens}
    seconds = {"student": 1500.0, "teacher": 700.0 if teacher_flops else 0.0, "loss": 90.0, "data_wait": 20.0}
    seconds |= {"validation": 120.0, "checkpoint": 30.0, "set_up": 25.0, "teacher_for_others": 0.0}
    accounts = {name: {"seconds": spent, "flops": flops.get(name, 0.0)} for name, spent in seconds.items()}
    charged = sum(seconds[name] for name in recipe.budget.charge)
    spent = per_token * tokens
    summary = {
        "status": "finished",
        "arm": arm,
        "objective": recipe.arms[arm]["objective"],
        "seed": seed,
        "steps": steps,
        "tokens": tokens,
        "unique_tokens": tokens // 2,
        "parameters": 17_200_000,
        "budget": {
            "unit": "flops",
            "limit": BUDGET_FLOPS,
            "spent": spent,
            "overshoot": spent - BUDGET_FLOPS,
            "charge": list(recipe.budget.charge),
        },
        "hours": charged / 3600,
        "flops": spent,
        "tokens_per_second": tokens / charged,
        "ledger": {
            "num_devices": 1,
            "accounts": accounts,
            "tokens": tokens,
            "unique_tokens": tokens // 2,
            "steps": steps,
            "overshoot": spent - BUDGET_FLOPS,
        },
        "validation": {
            "probe_mlm_loss": PROBE[arm][seed],
            "probe_mlm_accuracy": 0.3,
            "mlm_loss": None,
            "mlm_accuracy": None,
        },
        "untrained_parameters": ["encoder.layer.2.output.dense.weight"] if arm == "minilm" else [],
        "export": "export",
        "teacher": None
        if not learns_from_teacher(recipe.arms[arm])
        else {
            "path": "teachers/big",
            "parameters": 34_500_000,
            "cost_flops": TEACHER_COST,
            "cost_source": "its authors' model card",
        },
        "flops_per_token": {"student": STUDENT_FLOPS, "teacher": teacher_flops, "loss": loss_flops},
        "fingerprint": {
            "commit": "0123abc",
            "versions": {"torch": "2.13.0", "python": "3.11.2"},
            "hardware": {"device": "cpu", "num_cores": 2},
            "data": "feedbeef",
            "seed": seed,
        },
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    rows = []
    for quarter in range(1, 5):
        row = {"step": steps * quarter // 4, "tokens": tokens * quarter // 4, "budget_fraction": quarter / 4}
        rows.append({**row, "flops": spent * quarter / 4, "hours": 0.1 * quarter, "loss": 6.0 - quarter / 2})
        loss = PROBE[arm][seed] + 0.35 * (4 - quarter) ** 1.3
        rows.append({**row, "flops": spent * quarter / 4, "hours": 0.1 * quarter, "validation/probe_mlm_loss": loss})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_finetune(directory: Path, arm: str, seed: int) -> None:
    """One finished fine-tuning grid."""
    directory.mkdir(parents=True)
    tasks = {}
    for task, values in SCORES[arm].items():
        tasks[task] = {
            "metric": "Matthews correlation" if task == "CoLA" else "accuracy",
            "partial_split": task == "SST-2",
            "note": "a tenth of the rows" if task == "SST-2" else "",
            "num_train": 1000,
            "num_dev": 100,
            "cells": [
                {"learning_rate": 3e-5, "batch_size": 32, "seed": 0, "score": values[seed], "metrics": {}},
                {"learning_rate": 1e-4, "batch_size": 32, "seed": 0, "score": values[seed] - 0.1, "metrics": {}},
            ],
            "best_cell": {"learning_rate": 3e-5, "batch_size": 32},
            "scores": {"0": values[seed]},
            "mean": values[seed],
        }
    average = sum(summary["mean"] for summary in tasks.values()) / len(tasks)
    summary = {"model": "export", "tasks": tasks, "average": average, "selection": "best cell on dev"}
    (directory / "summary.json").write_text(json.dumps(summary))


def edit_summary(directory: Path, **changes: Any) -> None:
    """Change top-level entries of a run's summary."""
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | changes))


def write_losses(directory: Path, flops: list[float], losses: list[float]) -> None:
    """Replace a run's metrics by losses of the probe at these FLOPs, the last at its end; tokens are a millionth."""
    rows = [
        {
            "tokens": spent / 1e6,
            "flops": spent,
            "budget_fraction": spent / flops[-1],
            "validation/probe_mlm_loss": value,
        }
        for spent, value in zip(flops, losses, strict=True)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
