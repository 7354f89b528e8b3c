"""Plain data as another machine may have it: what is packed for a repository, and what is hashed."""

import math
import re
from pathlib import Path, PurePosixPath
from typing import Any

_PLACE = re.compile(r"(?<![\w.:/~])(?:~|/[\w.+@-]+)(?:/[\w.+@-]+)+/?")  # an absolute path; no URL, no ratio


def without_places(value: Any, below_here: bool = True) -> Any:
    """Plain data as another machine may have it: paths cut to their names.

    Numbers that are not finite, which JSON does not have, become None.

    Args:
        value: of mappings, lists, texts and numbers.
        below_here: paths below the working directory are cut to what is relative to it.
    """
    if isinstance(value, dict):
        return {key: without_places(part, below_here) for key, part in value.items()}
    if isinstance(value, list):
        return [without_places(part, below_here) for part in value]
    if isinstance(value, str):
        text = value.replace(f"{Path.cwd()}/", "") if below_here else value
        return _PLACE.sub(lambda found: PurePosixPath(found[0]).name, text)
    return None if isinstance(value, float) and not math.isfinite(value) else value
