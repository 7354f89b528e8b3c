"""Free what finished runs keep in order to go on: their newest checkpoints. Exports and records stay."""

from pathlib import Path

from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.training.run import SUMMARY, read_summary
from kd_megatron.training.setup import CHECKPOINTS


def prune(directory: Path) -> tuple[int, int]:
    """Remove the checkpoints of the finished runs in ``directory``, but for those that are kept for good.

    For good are those of `training.keep_every_steps` and `training.keep_at`, and those that branches have still to
    leave from. A run that is not finished, of a study that goes on beside this say, is left alone.

    Args:
        directory: a run, or one that holds runs at any depth, such as a study or a grid.

    Returns:
        How many checkpoints were removed, and the bytes of their files.

    Raises:
        OutputError: there is no finished run in ``directory``.
    """
    finished = [path.parent for path in sorted(directory.rglob(SUMMARY)) if read_summary(path.parent)]
    if not finished:
        raise OutputError(
            given=f"{directory} holds no finished run",
            expected="a run, a study or a grid with a summary.json in it",
            fix="correct the path, such as studies/NAME; runs that are not finished need their checkpoints",
        )
    removed = [_remove(path) for run in finished for path in checkpoint.droppable(run / CHECKPOINTS, keep=0)]
    return len(removed), sum(removed)


def _remove(path: Path) -> int:
    num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    checkpoint.remove(path)
    return num_bytes
