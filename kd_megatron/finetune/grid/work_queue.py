"""Who does which cell: every rank takes the longest one that can run now and that nobody has, until none is left.

Ranks meet in a store, where taking is one atomic count. What was taken is forgotten with the store; what was finished
is a file, so that a restart goes on from there. No score depends on who ran what.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as torch_dist

from kd_megatron.finetune.grid.halving import eligible, num_runs, planned, setting_of
from kd_megatron.finetune.grid.jobs import Job
from kd_megatron.finetune.places import Cell
from kd_megatron.ranks import stages

WAIT_SECONDS = 0.5  # between two looks of a rank that has nothing to do


@dataclass(frozen=True)
class Ended:
    """What a rank tells the others of a cell that it ended."""

    job: Job
    rank: int
    score: float | None  # on the rows that settings are chosen by; None: it failed
    words: str  # for people


class WorkQueue:
    """The cells of one grid, as one rank sees them.

    Args:
        store: that all ranks reach, of this grid alone.
        jobs: all cells, task after task in the order of the grid; the same on every rank.
        scores: the selection scores of those that are finished; the same on every rank.
        halving: whether a task's worse settings are given up after each seed.
        on_end: hears of every cell that any rank ends.
    """

    def __init__(
        self,
        store: torch_dist.Store,
        rank: int,
        jobs: Sequence[Job],
        scores: Mapping[Cell, float],
        halving: bool = False,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> None:
        self._store, self._rank, self._halving, self._on_end = store, rank, halving, on_end
        self._jobs = {job.key: job for job in jobs}
        self._by_task: dict[str, list[Cell]] = {}
        for job in jobs:
            self._by_task.setdefault(job.cell.task, []).append(job.cell)
        self._scores = dict(scores)
        self._failed: set[Cell] = set()
        self._taken: set[str] = set()  # by any rank, as far as this one has noticed
        self._num_heard = 0

    def take(self, while_waiting: Callable[[], None] = lambda: None) -> Job | None:
        """The next job of this rank, which has no other; None when nothing is left for it, or a rank has stopped all.

        ``while_waiting`` is called now and then while others run what must be finished before the end is known.
        """
        while not self._store.check(["stop"]):
            self.listen()
            open_jobs = self._open_jobs()
            if not open_jobs:
                return None
            for job in open_jobs:
                if job.key not in self._taken:
                    self._taken.add(job.key)
                    if self._store.add(f"taken/{job.key}", 1) == 1:
                        return job
            with stages.waiting():
                while_waiting()
                time.sleep(WAIT_SECONDS)
        return None

    def end(self, job: Job, score: float | None, words: str) -> None:
        """Tell all ranks that ``job`` is finished, with its selection score, or None when it failed for good."""
        number = self._store.add("num_ended", 1)
        self._store.set(f"ended/{number}", json.dumps([job.key, self._rank, score, words]))
        self.listen()

    def stop(self) -> None:
        """No rank takes another job: this one has met an error that the others would meet too."""
        self._store.set("stop", "")

    def listen(self) -> None:
        """Hear of the cells that were ended since the last time."""
        num_ended = self._store.add("num_ended", 0)
        while self._num_heard < num_ended:
            self._num_heard += 1
            key, rank, score, words = json.loads(self._store.get(f"ended/{self._num_heard}"))
            job = self._jobs[key]
            if score is None:
                self._failed.add(job.cell)
            else:
                self._scores[job.cell] = score
            self._on_end(Ended(job, rank, score, words))

    def num_cells(self) -> tuple[int, int]:
        """How many cells are finished, and how many there will be in all."""
        if not self._halving:
            return len(self._scores), len(self._jobs)
        num_done, total = 0, 0
        for cells in self._by_task.values():
            num_settings = len({setting_of(cell) for cell in cells})
            total += num_runs(num_settings, len(cells) // num_settings)
            num_done += sum(cell in self._scores for cell in planned(cells, self._scores))
        return num_done, total

    def _open_jobs(self) -> list[Job]:
        """What can run now and is not known to have ended, the longest first, then in the order of the grid."""
        now = {job.cell for job in self._jobs.values()} - self._scores.keys() - self._failed
        if self._halving:
            now &= {cell for cells in self._by_task.values() for cell in eligible(cells, self._scores)}
        found = [job for job in self._jobs.values() if job.cell in now]
        return sorted(found, key=lambda job: -job.num_characters)
