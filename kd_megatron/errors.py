"""Errors that a user can act on, and the exit code of each.

Every error says three things: what was given, what was expected, what to change. The command line prints
them without a traceback (``--debug`` shows it) and exits with the code of the class, as listed in
``docs/exit_codes.md``.
"""

import contextlib
import difflib
import errno
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_CHARACTERS = 8_000  # of what was given


class KdError(Exception):
    """Base of all errors a user can act on.

    Args:
        given: what was found, with its value or path.
        expected: what would have been right.
        fix: what to change, as an instruction.
    """

    exit_code = 1
    said: bool | None = None  # whether another rank on this host has told the user already; None: not known

    def __init__(self, given: str, expected: str = "", fix: str = "") -> None:
        self.given, self.expected, self.fix = _shortened(given), expected, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = (self.given, self.expected and f"expected: {self.expected}", self.fix and f"to fix: {self.fix}")
        return "\n  ".join(part for part in parts if part)


def _shortened(text: str) -> str:
    """A megabyte given where a name is expected is not repeated whole."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}... ({len(text):,} characters)"


class RecipeError(KdError):
    """A recipe or a command-line argument cannot be used."""

    exit_code = 2


class DataError(KdError):
    """A corpus, shard set or task file is missing, malformed or altered."""

    exit_code = 3


class ModelError(KdError):
    """A teacher, student or tokenizer cannot be loaded, or does not fit the others."""

    exit_code = 4


class OutputError(KdError):
    """The output directory holds something else, or the disk is full."""

    exit_code = 5


class NonFiniteError(KdError):
    """A loss or gradient became NaN or infinite; nothing was updated or saved with it."""

    exit_code = 6


class EnvironmentFault(KdError):
    """The machine or installation lacks something (a device, a package, another rank)."""

    exit_code = 7


class SlowerError(KdError):
    """A benchmark's ratio is worse than the recorded one by more than the tolerance."""

    exit_code = 8


class RankLost(KdError):
    """Another rank or node died, or this one hung; the same command resumes."""

    exit_code = 9


class Interrupted(KdError):
    """Stopped by a signal after saving; the same command resumes (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'hours'?`` for a misspelt ``name``, or the list of all ``known`` names."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(known)}"


def _means_disk_full(error: Exception, path: Path) -> bool:
    """Whether ``error`` comes from a full disk. torch's and safetensors' writers do not raise `OSError` then."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):
        return True
    existing = next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
    return isinstance(error, RuntimeError) and shutil.disk_usage(existing).free < 2**20


@contextlib.contextmanager
def disk_full_is_clear(path: Path | str) -> Iterator[None]:
    """Turn the operating system's "no space left" into an `OutputError` naming ``path``."""
    try:
        yield
    except KdError:
        raise
    except Exception as error:
        if not _means_disk_full(error, Path(path)):
            raise
        raise OutputError(
            given=f"no space left on the disk while writing {path}",
            expected="room for the whole file",
            fix="free some space ('prune studies': checkpoints of finished runs), then run the same command again; "
            "what was finished before is kept",
        ) from error
