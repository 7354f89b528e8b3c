"""Saving without waiting for the disk: state is gathered within the step, files are written on a thread of rank 0."""

import threading
from pathlib import Path
from typing import Any

from kd_megatron.engine import checkpoint
from kd_megatron.engine.build import Engine
from kd_megatron.engine.state import EngineState, gather
from kd_megatron.errors import KdError, OutputError, disk_full_is_clear
from kd_megatron.ranks import dist


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time.

    Args:
        keep: how many of the newest stay; those that are kept for good stay beside them.
        with_them: files that a checkpoint counts on, brought to the disk before it is published.
    """

    def __init__(self, directory: Path, keep: int, with_them: tuple[Path, ...] = ()) -> None:
        self.directory, self.keep, self.with_them = directory, keep, with_them
        self._thread: threading.Thread | None = None
        self._problem: KdError | None = None

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; known on rank 0 alone until all ranks `wait`."""
        return self._problem is not None

    def save(self, engine: Engine, step: int, run_state: dict[str, Any], for_good: bool = False) -> None:
        """Take the state of this moment; it is written while training goes on. Collective.

        Waits for the checkpoint before, so that memory holds one of them, and raises as `wait` does.

        Args:
            run_state: plain data that nobody changes afterwards.
        """
        self.wait()
        state = gather(engine)
        about = checkpoint.describe(engine, state, step, run_state, for_good)
        if dist.is_main():
            self._thread = threading.Thread(target=self._write, args=(about, state), name="checkpoint", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Collective.

        Raises:
            OutputError: it could not be written (a full disk, a directory that refuses); on every rank. The
                checkpoints before it are untouched.
        """
        self.close()
        problem, self._problem = dist.from_main(self._problem), None
        if problem is not None:
            raise problem

    def close(self) -> None:
        """As `wait`, on this rank alone and without raising."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, about: checkpoint.About, state: EngineState) -> None:
        path = self.directory / checkpoint.name_of(about.step)
        try:
            with disk_full_is_clear(path):
                for file in self.with_them:
                    if file.exists():
                        checkpoint.to_disk(file)
                checkpoint.write(self.directory, about, state)
                for old in checkpoint.droppable(self.directory, self.keep):
                    checkpoint.remove(old)
        except KdError as error:
            self._problem = error
        except Exception as error:
            self._problem = OutputError(
                given=f"checkpoint {path} could not be written: {type(error).__name__}: {error}",
                expected="a directory on a disk that takes it; the checkpoints before it are kept",
                fix="mend the disk or its permissions and run the same command again: it resumes",
            )
            self._problem.__cause__ = error
