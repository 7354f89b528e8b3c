"""``study --workers N``: N processes at one study, each with its share of the cores; each takes whole pieces.

Unlike the ranks of ``--procs``, they never wait for each other's steps: on one machine's cores a study of many small
runs ends sooner. This process starts them, passes signals on, says whose line is whose, and knows no more of the study.
A worker that dies leaves its piece to the others, which resume it.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from kd_megatron.errors import RecipeError
from kd_megatron.machine.threads import usable_cores


def run_workers(command: Sequence[str], num: int) -> int:
    """Run ``python -m kd_megatron COMMAND`` ``num`` times side by side, and wait for all.

    Args:
        command: what each of them is given; no ``--workers`` in it.

    Returns:
        0 when the last one that ended did so with 0: the study is then finished. Else the exit code of the last one.

    Raises:
        RecipeError: this process is one rank of several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            given="--workers in a group of several ranks",
            expected="processes that share a run (--procs, --hosts), or processes that share a study (--workers)",
            fix="leave one of them out",
        )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # as a launcher's: they save and end when this one dies
    environment = os.environ | alone | {"OMP_NUM_THREADS": str(max(1, usable_cores() // num)), "PYTHONUNBUFFERED": "1"}
    environment.pop("MASTER_PORT", None)  # each meets nobody, at a port of its own
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "kd_megatron", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches them once, through `pass_on`
        )
        for _ in range(num)
    ]

    def pass_on(number: int, _: FrameType | None) -> None:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, pass_on)
    ended: list[int] = []
    followers = [
        threading.Thread(target=_follow, args=(place, worker, ended)) for place, worker in enumerate(workers, start=1)
    ]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join()
    return ended[-1]


def _follow(place: int, worker: subprocess.Popen[bytes], ended: list[int]) -> None:
    """Print the worker's lines with its number until it ends, then note its exit code as a shell would see it."""
    assert worker.stdout is not None
    for line in worker.stdout:
        sys.stderr.write(f"{place} | {line.decode(errors='replace')}")
        sys.stderr.flush()
    code = worker.wait()
    ended.append(128 - code if code < 0 else code)
