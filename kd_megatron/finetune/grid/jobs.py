"""The cells of a grid as jobs: their files, their identity and their sizes.

A finished cell is a file whose name and content carry a hash of all that determines its score: the model's files, the
task's rows, the recipe's settings. An unchanged cell is never done twice, a changed one is never taken for an old one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_megatron.errors import OutputError, disk_full_is_clear
from kd_megatron.files import records
from kd_megatron.finetune.cell.train import count_steps
from kd_megatron.finetune.grid.seeds import used_seeds
from kd_megatron.finetune.places import OWNER, SUMMARY, Cell, cell_path
from kd_megatron.finetune.tasks.tasks import Task
from kd_megatron.ranks import dist
from kd_megatron.recipe import FinetuneRecipe, diff
from kd_megatron.recipe.paths import refuse_file_or_links_out

FORMAT = 2  # of a cell: raised when the same inputs would give another score
ADDED = ("min_steps",)  # keys that are younger than cells that count: at None, they leave the hash as it was


@dataclass(frozen=True)
class Job:
    """A cell, its file and its size."""

    cell: Cell
    key: str
    path: Path
    num_examples: int  # to be trained on, repeats counted
    num_characters: int  # of these; tells how long the job takes beside others


def list_jobs(task: Task, recipe: FinetuneRecipe, model_hash: str, output: Path, whose: str) -> list[Job]:
    """All cells of a task in the order of the grid; ``whose`` as of `used_seeds`."""
    counting = recipe.model_dump(exclude=diff.left_out(FinetuneRecipe, "cell"))
    settings = {
        "format": FORMAT,
        "model": model_hash,
        "task": task.content_hash(),
        **{key: value for key, value in counting.items() if key not in ADDED or value is not None},
    }
    num_characters = sum(map(len, [*task.train.first, *(task.train.second or [])]))
    jobs = []
    for learning_rate in dict.fromkeys(recipe.grid.learning_rates):
        for batch_size in dict.fromkeys(recipe.grid.batch_sizes):
            for seed, used in used_seeds(recipe, whose).items():
                cell = Cell(task.name, learning_rate, batch_size, seed, None if used == seed else used)
                described = json.dumps({**settings, "cell": _identity(cell)}, sort_keys=True)
                key = hashlib.sha256(described.encode()).hexdigest()[:12]
                num_examples = count_steps(len(task.train), cell, recipe) * batch_size
                seen_characters = num_characters * num_examples // len(task.train)
                jobs.append(Job(cell, key, cell_path(output, cell, key), num_examples, seen_characters))
    return jobs


def _identity(cell: Cell) -> dict[str, Any]:
    """What is hashed of a cell; one that draws from the listed seed is what it was before seeds could be own."""
    return {name: value for name, value in asdict(cell).items() if name != "used_seed" or value is not None}


def read_cell(job: Job) -> dict[str, Any] | None:
    """The content of the job's file, or None when it is not done."""
    try:
        content = json.loads(job.path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) and content.get("key") == job.key else None


def claim_output(output: Path, model_path: Path, model_hash: str) -> None:
    """Mark ``output`` as this model's. Raises `OutputError` when it is another's: scores are never mixed."""
    refuse_file_or_links_out(output)
    owner = output / OWNER
    if owner.is_file():
        found = json.loads(owner.read_text(encoding="utf-8"))
        if found["model_hash"] != model_hash:
            raise OutputError(
                given=f"{output} holds the scores of another model: {found['model']} ({found['model_hash']})",
                expected=f"an output of its own for {model_path} ({model_hash})",
                fix="choose another --output, or remove the directory if its scores are no longer wanted",
            )
        return
    foreign = [name for name in (SUMMARY, "config.json", "recipe.yaml") if (output / name).exists()]
    if foreign:
        raise OutputError(
            given=f"{output} holds something else: {', '.join(foreign)}",
            expected="a new directory, or one that fine-tuning wrote",
            fix="choose another --output",
        )
    if dist.is_main():
        with disk_full_is_clear(output):
            output.mkdir(parents=True, exist_ok=True)
            records.write_json(owner, {"model": str(model_path), "model_hash": model_hash})
