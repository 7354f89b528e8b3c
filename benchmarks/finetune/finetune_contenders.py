"""Who is timed at fine-tuning: our own run of one cell, Hugging Face's Trainer, and whole grids on several processes.

A turn is a whole run on texts: tokenise, load the weights, train, predict the dev rows. Imports, the tokenizer and a
first small run come before.

Shapes: N dev examples, C classes.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.steps import peers
from kd_megatron.errors import EnvironmentFault
from kd_megatron.finetune.cell.evaluate import score
from kd_megatron.finetune.cell.train import run_cell
from kd_megatron.finetune.grid.grid import encode
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.tasks import Split, Task
from kd_megatron.ranks.ports import free_port
from kd_megatron.recipe import FinetuneRecipe

TRAINER_BATCH = 8  # its default
WORKER = "benchmarks.finetune.finetune_worker"


class Contender(Protocol):
    """What takes turns."""

    @property
    def name(self) -> str:
        """As a row says it."""

    def run(self, seed: int) -> float:
        """One turn. Returns the score it came to."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Ours:
    """One cell of the grid, as `run_grid` runs it."""

    model_path: Path
    task: Task
    recipe: FinetuneRecipe
    batch_size: int
    tokenizer: Any
    device: torch.device

    @property
    def name(self) -> str:
        """As a row says it."""
        return f"ours, batch {self.batch_size}"

    def run(self, seed: int) -> float:
        """One turn. Returns the dev score."""
        encoded = encode(self.task, self.model_path, self.tokenizer, self.recipe)
        cell = Cell(self.task.name, self.recipe.grid.learning_rates[0], self.batch_size, seed)
        return float(run_cell(self.model_path, encoded, cell, self.recipe, self.device).content["score"])

    def close(self) -> None:
        """Nothing is held."""


class Trainer:
    """Hugging Face's Trainer, in a process of its own that waits between turns."""

    def __init__(self, name: str, task: Task, process: "subprocess.Popen[str]", version: str) -> None:
        self.name, self.version = name, version
        self._task, self._process = task, process

    def run(self, seed: int) -> float:
        """One turn. Returns the dev score, by our metric."""
        answer = peers.answer(self._process, str(seed))
        if not answer:
            raise EnvironmentFault(given=f"{self.name} ended in the middle of the benchmark", fix="leave out --peers")
        outputs = np.array(json.loads(answer), np.float32)  # [N, C]
        dev = next(iter(self._task.devs.values()))
        kind = torch.float32 if self._task.regression else torch.int64
        if self._task.regression:
            outputs = outputs.squeeze(1)
        return score(self._task, outputs, torch.tensor(dev.labels, dtype=kind))[0]

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()


def trainers(
    model_path: Path, task: Task, recipe: FinetuneRecipe, python: str | None, directory: Path, full_length: bool
) -> list[Trainer]:
    """The Trainer at its example's defaults (``full_length``), with dynamic padding, and with that and our batch size;

    those that can run.
    """
    examples = directory / f"{task.name}.json"
    splits = {"train": task.train, "dev": next(iter(task.devs.values()))}
    examples.write_text(json.dumps({name: _as_dict(split, task) for name, split in splits.items()}), encoding="utf-8")
    ours = recipe.grid.batch_sizes[0]
    found: list[Trainer] = []
    for pads, size in [(True, TRAINER_BATCH)] * full_length + [(False, TRAINER_BATCH), (False, ours)]:
        name = f"Trainer, batch {size}" + (" padded to full length" if pads else "")
        if name in [trainer.name for trainer in found]:
            continue
        num_threads = torch.get_num_threads()
        told = {
            "model": str(model_path.absolute()),
            "examples": str(examples.absolute()),
            "num_outputs": max(1, len(task.label_names)),
            "batch_size": size,
            "pad_to_max_length": pads,
            "max_length": recipe.max_length,
            "learning_rate": recipe.grid.learning_rates[0],
            "epochs": recipe.epochs,
            "weight_decay": recipe.weight_decay,
            "warmup_fraction": recipe.warmup_fraction,
            "bf16": recipe.precision == "bf16",
            "num_threads": num_threads,
        }
        launched = peers.launch(
            f"finetune/{name}", "finetune_trainer", told, num_threads, peers.interpreter(python), directory
        )
        if launched is None:
            break
        found.append(Trainer(name, task, *launched))
    return found


def _as_dict(split: Split, task: Task) -> dict[str, Any]:
    labels = split.labels if task.regression else list(map(int, split.labels))
    return {"first": split.first, "second": split.second, "labels": labels}


class Grid:
    """The whole grid of a recipe on so many processes, which wait between turns."""

    def __init__(self, num_processes: int, model_path: Path, recipe: FinetuneRecipe, directory: Path) -> None:
        self.name = "1 process" if num_processes == 1 else f"{num_processes} processes"
        self._directory, self._turns = directory / f"grid-{num_processes}", 0
        told = json.dumps([str(model_path), recipe.model_dump(mode="json"), str(self._directory / "warm_up")])
        port = free_port()
        self._processes = []
        for rank in range(num_processes):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
            environment |= {name: str(value) for name, value in ranks.items()}
            command = [sys.executable, "-m", WORKER, told]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        self._hear("ready")

    def run(self, seed: int) -> float:
        """One turn, with the recipe's own seeds: a whole grid from an empty directory. Returns its average score."""
        self._turns += 1
        output = self._directory / str(self._turns)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{output}\n")
            process.stdin.flush()
        return float(self._hear("done")[0].split()[1])

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _hear(self, word: str) -> list[str]:
        answers = [process.stdout.readline().strip() if process.stdout else "" for process in self._processes]
        if not all(answer.startswith(word) for answer in answers):
            self.close()
            raise EnvironmentFault(given=f"the grid on {self.name} answered {answers}", fix="run finetune to see why")
        return answers
