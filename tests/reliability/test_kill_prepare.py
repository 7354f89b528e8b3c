"""The short form of `kill_prepare`, in a process of its own: it forks, and a process that has trained should not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.reliability.kill_prepare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_killed_at_any_file_operation_then_the_same_bytes() -> None:
    output = run("--kills", "12")
    assert "0 failures" in output


@pytest.mark.long
def test_killed_a_hundred_times_in_every_stage() -> None:
    output = run("--kills", "100", "--seed", "1")
    for stage in ("spool", "tokenizer", "shards", "publication"):
        assert f"killed in {stage}\n" in output


@pytest.mark.long
def test_two_workers_killed_at_any_time() -> None:
    run("--kills", "10", "--workers", "2")
