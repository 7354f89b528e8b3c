"""Several processes at one study: each takes a piece that nobody has and that can be begun, until none is left.

A piece is held by a lock in ``DIRECTORY/.pieces`` which the system releases when its process ends, however it ends, so
that another one takes it over and resumes it. Budgets in FLOPs or tokens do not change with what runs beside them.
"""

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kd_megatron.files import locks
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.piece import Piece

PLACE = ".pieces"


@dataclass
class Taker:
    """What one process (rank 0 of several) sees of a study's pieces."""

    work: list[Piece]
    directory: Path  # of the study
    waiting: list[int] = field(init=False)  # of `work`: not known to be finished
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.work)))

    def take(self, given_up: Collection[str]) -> tuple[int, str] | None:
        """The next of `work` and what is to be done with it; None when all that are left are others' or wait for them.

        Args:
            given_up: the students that diverged.

        Returns:
            The index with ``"finished"``, ``"given up"`` or ``"run"``. The last is this process's own until `release`.
        """
        for index in self.waiting:
            piece = self.work[index]
            if piece.is_finished():
                return self._settled(index, "finished")
            if piece.of in given_up:
                return self._settled(index, "given up")
            if self._can_begin(index) and self._hold(piece):
                if piece.is_finished():  # by another process, between the two
                    self.release()
                    return self._settled(index, "finished")
                return self._settled(index, "run")
        return None

    def release(self) -> None:
        """Let go of the piece that was taken."""
        self.held.close()

    def _settled(self, index: int, what: str) -> tuple[int, str]:
        self.waiting.remove(index)
        return index, what

    def _can_begin(self, index: int) -> bool:
        """Whether all that it builds on is finished: what is before a barrier, and its student's earlier pieces."""
        piece = self.work[index]
        before = (self.work[other] for other in self.waiting if other < index)
        return not any(piece.barrier or one.barrier or (one.of is not None and one.of == piece.of) for one in before)

    def _hold(self, piece: Piece) -> bool:
        if piece.is_shared:
            return True
        place = self.directory / PLACE / re.sub(r"[^A-Za-z0-9._-]+", "-", piece.label)
        place.mkdir(parents=True, exist_ok=True)
        try:
            self.held.enter_context(locks.exclusive(place, wait=False))
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def alone_if_timed(recipe: StudyRecipe, directory: Path) -> Iterator[None]:
    """Hold all of a study whose budget is time: what runs beside a run would be taken from its budget. Collective.

    Raises:
        OutputError: another process is at such a study.
    """
    timed = recipe.budget.is_time or (recipe.tuning is not None and recipe.tuning.budget.is_time)
    if not timed:
        yield
        return
    dist.on_main(lambda: (directory / PLACE).mkdir(parents=True, exist_ok=True))
    with locks.alone(directory / PLACE, "running the study, whose budget is time, in"):
        yield


@contextlib.contextmanager
def last(directory: Path) -> Iterator[None]:
    """Hold the study's report: processes that end together write it one after another."""
    place = directory / PLACE / "report"
    place.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(place, wait=True):
        yield
