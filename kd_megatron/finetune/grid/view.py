"""What a person sees of the grid: cells done and in all, examples per second, who runs what, the time that is left.

Rank 0 draws; the others put into the queue's store, now and then, how far they are.
"""

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch.distributed as torch_dist
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from kd_megatron.console import logs
from kd_megatron.finetune.grid.jobs import Job
from kd_megatron.finetune.grid.work_queue import WorkQueue
from kd_megatron.ranks import dist

LOOK_SECONDS = 2.0  # between two exchanges
MAX_ROWS = 8  # ranks that have a row of their own


class GridView:
    """The progress of the whole grid, as a context."""

    def __init__(self, store: torch_dist.Store, queue: WorkQueue, jobs: Sequence[Job]) -> None:
        self._store, self._queue = store, queue
        self._mean_work = sum(job.num_characters for job in jobs) / len(jobs)
        self._done_before, _ = queue.num_cells()
        self._start = self._looked = time.monotonic()
        self._job: Job | None = None
        self._examples = self._examples_of_job = 0  # of this rank
        self._tell()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=logs.console,
            disable=not dist.is_main(),
        )
        self._whole = self._bar.add_task("", note="")
        self._rows: list[TaskID] = [
            self._bar.add_task("", total=1.0, note="") for _ in range(min(dist.world_size(), MAX_ROWS))
        ]

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.begin(None)  # the last cell is counted too
        for row in self._rows:
            self._bar.remove_task(row)
        self._bar.stop()

    def begin(self, job: Job | None) -> None:
        """This rank begins ``job``, or waits for the others (None)."""
        self._job, self._examples_of_job = job, 0
        self._exchange()

    def on_step(self, num_examples: int) -> None:
        """This rank has trained on so many more examples."""
        self._examples += num_examples
        self._examples_of_job += num_examples
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._exchange()

    def on_wait(self) -> None:
        """This rank waits for others."""
        if self._job is not None:
            self.begin(None)
        self.on_step(num_examples=0)

    def _exchange(self) -> None:
        self._looked = time.monotonic()
        self._tell()
        if dist.is_main():
            self._queue.listen()
            self._draw()

    def _tell(self) -> None:
        """What rank 0 is to know: the cell, its share that is done, its weight, the examples of all cells so far."""
        job = self._job
        name, share, work = "waits", 0.0, 0
        if job is not None:
            name, share, work = str(job.cell), self._examples_of_job / job.num_examples, job.num_characters
        self._store.set(f"at/{dist.rank()}", json.dumps([name, min(share, 1.0), work, self._examples]))

    def _draw(self) -> None:
        ranks = [f"at/{rank}" for rank in range(dist.world_size())]
        states = [json.loads(self._store.get(key)) for key in ranks if self._store.check([key])]
        num_done, total = self._queue.num_cells()
        seconds = time.monotonic() - self._start
        running = sum(share * work for _, share, work, _ in states) / self._mean_work  # in cells
        done_here = num_done - self._done_before + running
        left = (total - num_done - running) / done_here * seconds if done_here > 0 else None
        speed = sum(examples for *_, examples in states) / seconds
        note = f"{speed:,.0f} examples/s, {words_of_left(left)}"
        self._bar.update(
            self._whole, description=f"{num_done}/{total} cells", completed=num_done + running, total=total, note=note
        )
        for rank, (row, (name, share, *_)) in enumerate(zip(self._rows, states, strict=False)):
            self._bar.update(row, description=f"rank {rank}: {name}", completed=share)


def words_of_left(seconds: float | None) -> str:
    """``seconds`` that are left, for people; None is not known yet."""
    if seconds is None:
        return "time left not known yet"
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute left"
    return f"{minutes} min left" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min left"
