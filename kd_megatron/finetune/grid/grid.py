"""The whole stage: every task x learning rate x batch size x seed, spread over ranks, resumable cell by cell.

Every rank sees the same output directory; a cell is run by one rank (`work_queue`) and ends as one file there.
"""

import functools
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist

from kd_megatron.console import logs
from kd_megatron.errors import KdError, NonFiniteError, OutputError, disk_full_is_clear
from kd_megatron.files import locks, manifest, records
from kd_megatron.finetune.cell import model as models
from kd_megatron.finetune.cell import vocabulary
from kd_megatron.finetune.cell.batches import EncodedTask, cut_in_words, encode_task
from kd_megatron.finetune.cell.train import CellResult, run_cell
from kd_megatron.finetune.cell.unfinished import Unfinished
from kd_megatron.finetune.cell.untrained import read_untrained_top
from kd_megatron.finetune.grid.halving import planned
from kd_megatron.finetune.grid.jobs import Job, claim_output, list_jobs, read_cell
from kd_megatron.finetune.grid.outputs import (
    predictions_path,
    record_machine,
    tensorboard_path,
    write_predictions,
    write_tensorboard,
)
from kd_megatron.finetune.grid.summary import averages, summarise, summarise_task
from kd_megatron.finetune.grid.view import GridView
from kd_megatron.finetune.grid.work_queue import Ended, WorkQueue
from kd_megatron.finetune.places import SUMMARY, Cell
from kd_megatron.finetune.tasks.selection import hold_out, idle_settings
from kd_megatron.finetune.tasks.tasks import Task, load_task
from kd_megatron.machine.precision import multiplies_bf16, resolve_precision
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe

T = TypeVar("T")


def run_grid(model_path: Path | str, recipe: FinetuneRecipe, output: Path, whose: str | None = None) -> dict[str, Any]:
    """Fine-tune the model on every cell that is not done yet, and summarise. Collective: every rank calls it.

    Args:
        model_path: a directory in Hugging Face format with safetensors and tokenizer.
        output: gets TASK/cells/*.json and summary.json.
        whose: what the seeds are a function of, beside the listed ones (`used_seeds`): of a student its place in the
            study; None: the hash of the model's files.

    Returns:
        The content of ``summary.json``, on every rank.

    Raises:
        DataError: a task's data cannot be used.
        ModelError: the model or its tokenizer cannot be used.
        NonFiniteError: a cell diverged; the finished ones are kept.
        OutputError: ``output`` holds the scores of another model, or another run writes there; or the disk is full.
    """
    device, model_path, output = dist.initialise(share_devices=True), Path(model_path), Path(output)
    logs.quiet_libraries()
    _main_first(lambda: models.check_directory(model_path))
    model_hash = _main_first(lambda: manifest.model_hash(model_path))
    _main_first(lambda: claim_output(output, model_path, model_hash))
    with locks.alone(output, "fine-tuning into"):
        return _run_claimed(model_path, model_hash, recipe, output, device, whose or model_hash)


def _run_claimed(
    model_path: Path, model_hash: str, recipe: FinetuneRecipe, output: Path, device: torch.device, whose: str
) -> dict[str, Any]:
    """`run_grid` in a directory that is this run's own."""
    stages.stacks_to(output)
    tokenizer = models.load_tokenizer(model_path, recipe.max_length)
    tasks = _main_first(lambda: [load_split_task(task, recipe) for task in recipe.tasks])
    recipe = resolve_precision(recipe)
    if recipe.precision == "bf16" and not multiplies_bf16():
        logs.warn("this machine emulates bf16, which is many times slower than fp32; precision=auto takes the faster")
    for words in idle_settings(recipe):
        logs.warn(words)
    top = _main_first(lambda: read_untrained_top(model_path, recipe.untrained_top))
    if top.names:
        logs.warn(f"{model_path}: {top}")

    identity = top.identity(model_hash)
    jobs = [job for task in tasks for job in list_jobs(task, recipe, identity, output, whose)]
    scores = dist.from_main({job.cell: cell["selection_score"] for job in jobs if (cell := read_cell(job))})
    if scores:
        logs.say(f"{len(scores)} of {len(jobs)} cells are done already")
    for job in jobs:
        if job.cell in scores and dist.is_main():
            Unfinished(job.path).remove()  # of a cell that was killed between its json and here
    by_name = {task.name: task for task in tasks}
    _main_first(lambda: record_machine(output, [job.path for job in jobs]))

    @functools.lru_cache(maxsize=2)
    def encoded(name: str) -> EncodedTask:
        return encode(by_name[name], model_path, tokenizer, recipe)

    def run(job: Job, on_step: Callable[[int], None]) -> tuple[dict[str, Any], str]:
        task, unfinished = encoded(job.cell.task), Unfinished(job.path)
        try:
            result = run_cell(model_path, task, job.cell, recipe, device, on_step, unfinished)
        except NonFiniteError:
            unfinished.remove()
            raise
        _keep(job, result, recipe, output)
        unfinished.remove()
        # A warning that this rank could not print, since rank 0 alone does, goes with what rank 0 says of the cell.
        warning = "" if dist.is_main() else cut_in_words(task, recipe.max_length)
        return result.content, f"; warning: {warning}" if warning else ""

    with stages.stage("fine-tuning"):
        _run_cells(jobs, scores, recipe.halving, run)
    return dist.from_main(_summarise(tasks, jobs, model_path, model_hash, recipe, output) if dist.is_main() else {})


def load_split_task(task: TaskRecipe, recipe: FinetuneRecipe) -> Task:
    """The task with the splits that ``recipe`` asks for: rows to select by; test rows where predictions are kept."""
    loaded = load_task(task, recipe.glue_path, recipe.glue_revision, with_tests=recipe.save_predictions)
    return hold_out(loaded, recipe.selection)


def _run_cells(
    jobs: list[Job],
    scores: dict[Cell, float],
    halving: bool,
    run: Callable[[Job, Callable[[int], None]], tuple[dict[str, Any], str]],
) -> None:
    """Run with the other ranks what is not done yet, and end all of them with the first error of any.

    ``run`` gives a cell's content, and what is to be said beside its score.

    A cell that diverges is given up, and the rest goes on; any other error would meet the other cells too.
    """
    error: KdError | None = None
    store = torch_dist.PrefixStore(f"kd/finetune/{dist.from_main(uuid.uuid4().hex)}", dist.store())
    queue = WorkQueue(store, dist.rank(), jobs, scores, halving, _say_ended)
    num_done, total = queue.num_cells()
    if num_done == total:
        return
    with GridView(store, queue, jobs) as view:
        while job := queue.take(view.on_wait):
            view.begin(job)
            try:
                content, beside = run(job, view.on_step)
                speed = f"{content['examples_per_second']:.0f} examples/s"
                words = f"score {content['score']:.4f}, {speed}, {content['train_seconds']:.0f} s{beside}"
                queue.end(job, content["selection_score"], words)
            except NonFiniteError as caught:
                error = error or caught
                queue.end(job, None, "diverged; the other cells go on")
            except KdError as caught:
                error = caught
                queue.stop()
        dist.wait_for_all()
    for found in dist.gather(error):
        if found is not None:
            raise found


def _say_ended(ended: Ended) -> None:
    logs.say(f"{ended.job.cell}: {ended.words}" + (f" (rank {ended.rank})" if dist.world_size() > 1 else ""))


def _keep(job: Job, result: CellResult, recipe: FinetuneRecipe, output: Path) -> None:
    """Write what the finished cell leaves behind; its json, which says that it is finished, comes last."""
    if recipe.save_predictions:
        write_predictions(predictions_path(job.path), result.predictions)
    if recipe.tensorboard:
        write_tensorboard(tensorboard_path(output, job.path), result.content)
    with disk_full_is_clear(job.path):
        job.path.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(job.path, {"key": job.key, **result.content})


def _main_first(work: Callable[[], T]) -> T:
    """``work`` on rank 0, which may fill a cache and whose error ends all ranks, then on the others."""
    results: list[T] = []
    dist.on_main(lambda: results.append(work()))
    return results[0] if dist.is_main() else work()


def encode(task: Task, model_path: Path, tokenizer: Any, recipe: FinetuneRecipe) -> EncodedTask:
    """The task as cells of this model take it: tokenised, with ids of the embedding rows that it uses."""
    encoded = encode_task(task, tokenizer, recipe.max_length)
    if words := cut_in_words(encoded, recipe.max_length):
        logs.warn(words)
    model = models.load_classifier(model_path, max(1, len(task.label_names)), task.regression, seed=0)
    return vocabulary.compact(encoded, model, tokenizer.all_special_ids)


def _summarise(
    tasks: list[Task], jobs: list[Job], model_path: Path, model_hash: str, recipe: FinetuneRecipe, output: Path
) -> dict[str, Any]:
    summaries = {}
    for task in tasks:
        contents = {job.cell: content for job in jobs if job.cell.task == task.name and (content := read_cell(job))}
        scores = {cell: content["selection_score"] for cell, content in contents.items()}
        mine = [job for job in jobs if job.cell.task == task.name]
        if recipe.halving:
            kept = set(planned([job.cell for job in mine], scores))
            mine = [job for job in mine if job.cell in kept]
        absent = [job.path for job in mine if job.cell not in contents]
        if absent:
            raise OutputError(
                given=f"{absent[0]} was finished on another rank but cannot be read here",
                expected="one output directory that all nodes see",
                fix="put --output on a shared file system and run the same command again",
            )
        summaries[task.name] = summarise_task(task, [contents[job.cell] for job in mine])
    summary = {"model": str(model_path), "model_hash": model_hash, **summarise(summaries, recipe)}
    summary["averages"] = averages(summaries)
    summary["untrained_top"] = read_untrained_top(model_path, recipe.untrained_top).describe()
    with disk_full_is_clear(output):
        records.write_json(output / SUMMARY, summary)
    return summary
