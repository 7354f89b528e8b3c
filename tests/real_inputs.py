"""Where tests find real texts, models and tasks: below KD_DATA, where that is set. Without it they are skipped."""

import os
from pathlib import Path

import pytest

HOME = os.environ.get("KD_DATA", "")


def needs(name: str) -> pytest.MarkDecorator:
    """A mark: the test reads ``name`` below KD_DATA, and is skipped where that is not there."""
    is_there = bool(HOME) and (Path(HOME) / name).exists()
    return pytest.mark.skipif(not is_there, reason=f"needs real inputs: KD_DATA names no directory with {name}")
