"""Where a recipe may write: names that become parts of a path, directories it names, and links inside a run.

A recipe may come from anyone. Its ``output`` may be any directory (a big disk); a *name* is one part of a path and
never leads anywhere else; and what is written into a directory that exists already stays in it: links that lead
out of it are refused. docs/threats.md has the reasons.
"""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from kd_megatron.errors import OutputError

DATA_HOME = "$KD_DATA"  # how a recipe names the home of real inputs
NAME_BYTES = 100  # room for prefixes and endings: file systems allow 255
PART_BYTES, PATH_BYTES = 255, 4000


def check_name(name: str) -> str:
    """``name``, which can be one part of a path. Raises `ValueError`, of which a recipe's error is made."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]*", name) or len(name) > NAME_BYTES:
        raise ValueError(
            f"a name of letters, digits and . _ + = - that begins with a letter or digit, {NAME_BYTES} at most "
            "(it becomes part of a path)"
        )
    return name


def check_path(path: str) -> str:
    """``path``, which a file system can have. Raises `ValueError`, of which a recipe's error is made."""
    if not path.strip() or any(ord(character) < 32 for character in path):
        raise ValueError("a path that is neither empty nor has control characters")
    if len(os.fsencode(path)) > PATH_BYTES or any(len(os.fsencode(part)) > PART_BYTES for part in path.split("/")):
        raise ValueError(f"a path of at most {PATH_BYTES} bytes, each part at most {PART_BYTES}")
    return path


def check_revision(revision: str) -> str:
    """``revision``, a commit, branch or tag of the hub. Raises `ValueError`, of which a recipe's error is made."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", revision) or ".." in revision:
        raise ValueError("a revision of the hub: best a full commit (40 hexadecimal digits), or a tag or branch")
    return revision


PathPart = Annotated[str, AfterValidator(check_name)]
PathText = Annotated[str, AfterValidator(check_path)]
Revision = Annotated[str, AfterValidator(check_revision)]


def expand(text: str) -> str:
    """The path that a recipe's ``text`` names on this machine.

    A leading ``$KD_DATA`` is the home of real inputs (texts, models, GLUE): the environment variable ``KD_DATA``, or
    ``data`` where it is not set. A leading ``~`` is the user's home. No other variable is known.
    """
    if text == DATA_HOME or text.startswith(f"{DATA_HOME}/"):
        text = (os.environ.get("KD_DATA") or "data") + text.removeprefix(DATA_HOME)
    return os.path.expanduser(text)


def how_to_get(text: str) -> str:
    """The advice of an error about a recipe's path ``text`` that is not there; empty for any but a real input."""
    return "./launch.sh inputs RECIPE says how to get it; KD_DATA names the directory" if DATA_HOME in text else ""


def require_place(path: Path) -> None:
    """Make the directory that a file goes to, before the work whose result it is.

    Raises:
        OutputError: that cannot be, or ``path`` is a directory.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a directory")
    except OSError as error:
        raise OutputError(
            given=f"{path} cannot be written: {error.strerror or error}",
            expected="a file in a directory that can be made",
            fix="choose another place",
        ) from error


def refuse_file_or_links_out(directory: Path) -> None:
    """Check a directory that is about to be written to, before anything is.

    ``directory`` itself may be a link (``runs`` on another disk is a good idea): where it leads is where the run is.

    Raises:
        OutputError: it is a file, or something inside it is a link to a place outside.
    """
    file = next((path for path in (directory, *directory.absolute().parents) if path.is_file()), None)
    if file is not None:
        where = "is not a directory" if file == directory else f"lies below {file}, which is a file"
        raise OutputError(given=f"output {directory} {where}", expected="a directory", fix="choose another output")
    if not directory.exists():
        return
    root = directory.resolve()
    for parent, directories, files in os.walk(root, followlinks=False):
        for path in (Path(parent) / name for name in (*directories, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise OutputError(
                    given=f"{path} is a link to {path.resolve()}, outside {directory}",
                    expected="a directory that keeps what is written to it",
                    fix="remove the link; to use another disk, give that disk's directory as the output",
                )
