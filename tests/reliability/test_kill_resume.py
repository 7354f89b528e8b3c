"""kill -9, three times in the default run and a hundred times in the long one; the tally says what was hit."""

from pathlib import Path

import kill_resume
import pytest


def test_three_kills_and_the_same_bits(tmp_path: Path) -> None:
    aims = ["both ranks, writing", "rank 1", "rank 0"]
    tally = kill_resume.kill_and_resume(tmp_path, aims, seed=0, num_steps=48)
    assert tally.differences == [], tally.text()
    assert tally.kills.total() == 3
    assert tally.finished_runs >= 1
    assert tally.resumes >= 1


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_a_hundred_kills_and_the_same_bits(tmp_path: Path) -> None:
    tally = kill_resume.kill_and_resume(tmp_path, kill_resume.random_aims(100, seed=0), seed=0)
    assert tally.differences == [], tally.text()
    assert tally.kills.total() == 100
