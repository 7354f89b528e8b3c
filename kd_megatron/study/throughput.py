"""Whole training steps of every arm, timed in turn in one process group: what each objective costs in tokens.

Arms alternate step by step, so that a machine whose speed drifts slows them all alike; ratios are to be quoted, not
absolute times.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kd_megatron import dist
from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.kernels.bench.rows import Row, timing_figures
from kd_megatron.logs import progress_bar
from kd_megatron.schema import StudyRecipe
from kd_megatron.study.runner import run_recipe
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run
from kd_megatron.training.signals import StopRequest

NUM_WARMUP_STEPS = 2


def time_arms(recipe: StudyRecipe, num_steps: int, teacher_path: str | None) -> list[Row]:
    """Time ``num_steps`` steps of every arm of ``recipe``, in turn. Collective."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            prepare_run(
                run_recipe(recipe, arm, recipe.seeds[0]), arm, recipe.seeds[0], Path(scratch) / arm, teacher_path
            )
            for arm in recipe.arms
        ]
        seconds = _time(runs, num_steps)
        for run in runs:
            run.metrics.close()
    reference = 0
    return [_row(run, seconds[:, index], seconds[:, reference], runs[reference].arm) for index, run in enumerate(runs)]


def _time(runs: list[Run], num_steps: int) -> np.ndarray:
    """Seconds per step, [num_steps, arms]."""
    seconds = np.zeros((num_steps, len(runs)))
    batches = [Prefetcher(run.micro_batches, first=0) for run in runs]
    with progress_bar("rounds") as bar:
        task = bar.add_task("timing", total=num_steps, note="")
        for step in range(-NUM_WARMUP_STEPS, num_steps):
            for index, run in enumerate(runs):
                _wait(run.device)
                start = time.perf_counter()
                one_step(run, batches[index], run.study.training.learning_rate, StopRequest())
                charge(run)
                _wait(run.device)
                if step >= 0:
                    seconds[step, index] = time.perf_counter() - start
            bar.update(task, completed=max(0, step + 1))
    for prefetcher in batches:
        prefetcher.close()
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def _row(run: Run, seconds: np.ndarray, reference: np.ndarray, ratio_to: str) -> Row:
    study = run.study
    tokens = study.training.global_batch_size * study.data.sequence_length
    return Row(
        name=f"step/{run.arm}",
        backend=getattr(run.objective.options, "backend", "none"),
        shape=f"B{study.training.global_batch_size} L{study.data.sequence_length}",
        dtype=study.training.precision,
        device=run.device.type,
        # On a CPU the arms share one process and one heap.
        peak_mib=torch.cuda.max_memory_allocated() / 2**20 if run.device.type == "cuda" else None,
        ratio_to=ratio_to,
        **timing_figures(seconds.tolist(), reference.tolist(), tokens),
    )
