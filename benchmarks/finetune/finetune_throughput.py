"""Whole fine-tuning runs, timed in turn: one cell beside Hugging Face's Trainer, and a grid on several processes."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.finetune.finetune_contenders import Contender, Grid, Ours, trainers
from benchmarks.rows import Row, timing_figures
from kd_megatron.console import logs
from kd_megatron.finetune.cell.batches import encode_task
from kd_megatron.finetune.cell.model import load_tokenizer
from kd_megatron.finetune.grid.jobs import list_jobs
from kd_megatron.finetune.tasks.tasks import Split, Task, load_task
from kd_megatron.recipe import FinetuneRecipe

WARM_UP_EXAMPLES = 16
GRID_CELLS = 8  # at least, so that two processes end at nearly the same time


def time_tasks(
    model_path: Path,
    recipe: FinetuneRecipe,
    num_rounds: int,
    with_peers: bool,
    python: str | None,
    full_length: bool = True,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of every task of ``recipe``, and the dev scores of every row, one for each round, which is the seed too.

    Args:
        model_path: of the encoder.
        recipe: its first learning rate and batch size are run; the precision is decided.
        num_rounds: how often each contender runs.
        with_peers: whether Hugging Face's Trainer runs beside us.
        python: the interpreter that has it; None is this one.
        full_length: whether the Trainer that pads every text to the full length is one of them.
    """
    rows: list[Row] = []
    scores: dict[str, list[float]] = {}
    for task_recipe in recipe.tasks:
        task = load_task(task_recipe, recipe.glue_path, recipe.glue_revision, with_tests=False)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = load_tokenizer(model_path, recipe.max_length)
        ours = Ours(model_path, task, recipe, recipe.grid.batch_sizes[0], tokenizer, device)
        replace(ours, task=_few(task)).run(0)
        with ExitStack() as stack:
            contenders: list[Contender] = []
            if with_peers:
                contenders += trainers(model_path, task, recipe, python, _directory(stack), full_length)
            contenders.append(ours)
            for contender in contenders:
                stack.callback(contender.close)
            shape = f"{len(task.train)} train x {recipe.epochs:g}, {task.num_dev} dev"
            num_tokens = int(encode_task(task, tokenizer, recipe.max_length).train.lengths.sum() * recipe.epochs)
            name = f"finetune/{task.name}"
            rows += _measure(name, shape, contenders, num_tokens, num_rounds, recipe.precision, scores)
    return rows, scores


def time_grid(
    model_path: Path, recipe: FinetuneRecipe, num_rounds: int, numbers: Sequence[int]
) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of the grid of the recipe's first task on so many processes of one thread each, seeds added to its cells."""
    recipe = recipe.model_copy(update={"tasks": recipe.tasks[:1]})
    task = load_task(recipe.tasks[0], recipe.glue_path, recipe.glue_revision, with_tests=recipe.save_predictions)
    settings = len(list_jobs(task, recipe.model_copy(update={"seeds": [0]}), "", Path(), whose=""))
    recipe = recipe.model_copy(update={"seeds": list(range(max(len(recipe.seeds), -(-GRID_CELLS // settings))))})
    num_cells = settings * len(recipe.seeds)
    tokenizer = load_tokenizer(model_path, recipe.max_length)
    num_tokens = int(encode_task(task, tokenizer, recipe.max_length).train.lengths.sum() * recipe.epochs)
    scores: dict[str, list[float]] = {}
    with ExitStack() as stack:
        directory = _directory(stack)
        contenders: list[Contender] = []
        for number in numbers:
            contenders.append(Grid(number, model_path, recipe, directory))
            stack.callback(contenders[-1].close)
        few = task.name, f"{num_cells} cells of {len(task.train)} train x {recipe.epochs:g}, {task.num_dev} dev"
        rows = _measure(
            f"finetune/grid {few[0]}", few[1], contenders, num_cells * num_tokens, num_rounds, recipe.precision, scores
        )
    return rows, scores


def _measure(
    name: str,
    shape: str,
    contenders: Sequence[Contender],
    num_tokens: int,
    num_rounds: int,
    precision: str,
    scores: dict[str, list[float]],
) -> list[Row]:
    """Every contender once in each round, every other round backwards; speed is relative to the first one."""
    seconds = np.zeros((num_rounds, len(contenders)))
    for number in range(num_rounds):
        order = range(len(contenders)) if number % 2 == 0 else reversed(range(len(contenders)))
        for index in order:
            contender = contenders[index]
            start = time.perf_counter()
            score = contender.run(number)
            seconds[number, index] = time.perf_counter() - start
            scores.setdefault(f"{name}, {contender.name}", []).append(score)
            logs.say(f"{name}, {contender.name}: {seconds[number, index]:.1f} s, score {score:.4f}")
    return [
        Row(
            name=name,
            backend=contender.name,
            shape=shape,
            dtype=precision,
            device="cuda" if torch.cuda.is_available() else "cpu",
            peak_mib=None,
            ratio_to=contenders[0].name,
            **timing_figures(seconds[:, index].tolist(), seconds[:, 0].tolist(), num_tokens),
        )
        for index, contender in enumerate(contenders)
    ]


def _few(task: Task) -> Task:
    """A task of some examples, to warm up."""

    def few(split: Split) -> Split:
        part = slice(WARM_UP_EXAMPLES)
        return Split(split.first[part], split.second and split.second[part], split.labels[part])

    return replace(task, train=few(task.train), devs={name: few(split) for name, split in task.devs.items()})


def _directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory()))
