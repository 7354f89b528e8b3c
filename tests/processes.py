"""Starts a Python program as several ranks that talk over gloo, the way a launcher does."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_megatron.ranks.ports import free_port

ROOT = Path(__file__).resolve().parents[1]


def environment(rank: int = 0, world_size: int = 1, port: int | None = None) -> dict[str, str]:
    """One rank's environment: a single thread, so that sums are taken in the same order everywhere."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if port else {}
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONFAULTHANDLER": "1",
        **ranks,
        **meeting,
    }


def start(program: Sequence[str], world_size: int = 1) -> list["subprocess.Popen[str]"]:
    """Start ``program`` (arguments of the Python interpreter) once per rank."""
    port = free_port() if world_size > 1 else None
    return [
        subprocess.Popen(
            [sys.executable, *program],
            env=environment(rank, world_size, port),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


def run(program: Sequence[str], world_size: int = 1, timeout_seconds: float = 400) -> str:
    """Run ``program`` on all ranks to a good end and return rank 0's output; all ranks end when one fails."""
    ranks = start(program, world_size)
    outputs = []
    try:
        for number, rank in enumerate(ranks):
            output, _ = rank.communicate(timeout=timeout_seconds)
            outputs.append(output)
            assert rank.returncode == 0, f"rank {number} ended with {rank.returncode}: {output[-4000:]}"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return outputs[0]
