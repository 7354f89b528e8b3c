"""What a fine-tuning would do, without training or writing anything: cells, examples, time where it is known."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.files import manifest
from kd_megatron.finetune.cell import model as models
from kd_megatron.finetune.cell.untrained import read_untrained_top
from kd_megatron.finetune.grid import halving
from kd_megatron.finetune.grid.grid import load_split_task
from kd_megatron.finetune.grid.jobs import Job, claim_output, list_jobs, read_cell
from kd_megatron.finetune.places import OWNER
from kd_megatron.finetune.tasks.tasks import Task
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.recipe import FinetuneRecipe


@dataclass(frozen=True)
class TaskPlan:
    """One task's part of the grid."""

    task: Task
    num_settings: int
    num_seeds: int
    num_cells: int
    num_done: int
    num_examples: int  # still to be trained on, repeats counted
    examples_per_second: float | None  # of the cells that are done, one at a time; None before the first

    @property
    def seconds(self) -> float | None:
        """Time of what is left on one process like those of the finished cells; None before there is one."""
        return self.num_examples / self.examples_per_second if self.examples_per_second else None


def plan_grid(model_path: Path, recipe: FinetuneRecipe, output: Path) -> list[TaskPlan]:
    """Read model, tasks and output as the stage would, and count.

    Raises:
        KdError: what the stage itself would raise before it trains.
    """
    models.check_directory(model_path)
    model_hash = manifest.model_hash(model_path)
    if (output / OWNER).is_file():
        claim_output(output, model_path, model_hash)
    models.load_tokenizer(model_path, recipe.max_length)
    recipe = resolve_precision(recipe)
    identity = read_untrained_top(model_path, recipe.untrained_top).identity(model_hash)
    jobs = (
        (task, list_jobs(task, recipe, identity, output, whose=model_hash))
        for task in (load_split_task(one, recipe) for one in recipe.tasks)
    )
    return [_plan_task(task, recipe, found) for task, found in jobs]


def _plan_task(task: Task, recipe: FinetuneRecipe, jobs: list[Job]) -> TaskPlan:
    done = {job.cell: content for job in jobs if (content := read_cell(job)) is not None}
    num_seeds = len(recipe.seeds)
    num_settings, num_cells = len(jobs) // num_seeds, len(jobs)
    if recipe.halving:
        num_cells = halving.num_runs(num_settings, num_seeds)
        scores = {cell: content["selection_score"] for cell, content in done.items()}
        kept = set(halving.planned([job.cell for job in jobs], scores))
        done = {cell: content for cell, content in done.items() if cell in kept}
    mean_examples = statistics.mean(job.num_examples for job in jobs)  # settings differ by less than a batch an epoch
    speeds = [content["examples_per_second"] for content in done.values()]
    return TaskPlan(
        task=task,
        num_settings=num_settings,
        num_seeds=num_seeds,
        num_cells=num_cells,
        num_done=len(done),
        num_examples=round((num_cells - len(done)) * mean_examples),
        examples_per_second=statistics.median(speeds) if speeds else None,
    )
