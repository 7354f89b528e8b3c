"""Starts a Python program as several ranks that talk over gloo, the way a launcher does."""

import functools
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_megatron.ranks.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
LAST_WORDS_SECONDS = 15.0  # of the ranks that are left when one has failed: often they know why
LOOK_SECONDS = 0.01


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


class WarmParent:
    """The other end of warm_parent.py. It ends with this process."""

    def __init__(self) -> None:
        # Read when the libraries are loaded: quiet about lost connections, and no look for a GPU that begins CUDA.
        early = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._outputs, self._numbers = tempfile.TemporaryDirectory(prefix="ranks_"), itertools.count()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "warm_parent.py")],
            env=environment() | early,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, program: Sequence[str], own_environment: dict[str, str], fresh: bool) -> tuple[int, Path]:
        """A new process, and the file of its output."""
        output = Path(self._outputs.name) / f"{next(self._numbers)}.txt"
        order = {"program": list(program), "environment": own_environment, "output": str(output)}
        return self._ask("fork", **order, fresh=fresh), output

    def reap(self, child: int) -> int:
        """The exit code of ``child``, which has ended."""
        return self._ask("reap", child=child)

    def _ask(self, do: str, **order: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **order}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the warm parent ended with {self._process.wait()}"
        return int(answer)


@functools.cache
def warm_parent() -> WarmParent:
    """One for all tests of this process."""
    return WarmParent()


class Rank:
    """A process that the warm parent forked, with the interface of `subprocess.Popen` as far as tests need it.

    Its output goes to a file, so that nobody has to read it while it runs.
    """

    def __init__(self, program: Sequence[str], own_environment: dict[str, str], fresh: bool = False) -> None:
        self.pid, self._output = warm_parent().fork(program, own_environment, fresh)
        self._handle = os.pidfd_open(self.pid)  # its number is its own until it is reaped
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0, self.output())
        return code

    def _code(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._handle], [], [], seconds)[0]:
            os.close(self._handle)
            self.returncode = warm_parent().reap(self.pid)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.output(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""

    def end(self) -> str:
        """How it ended, and its last words."""
        code = self.poll()
        how = "still runs" if code is None else f"ended with {code}"
        if code is not None and code < 0:
            how += f" ({signal.Signals(-code).name})"
        return f"{how}: {self.output()[-4000:] or '(no output)'}"


def start(program: Sequence[str], world_size: int = 1, fresh: bool = False) -> list[Rank]:
    """Start ``program`` (arguments of the Python interpreter, ``-m MODULE`` or a file first) once per rank.

    Each finds the libraries imported, unless it is to be ``fresh``: then it imports them itself, as users' runs do.
    """
    port = free_port() if world_size > 1 else None
    return [Rank(program, environment(rank, world_size, port), fresh) for rank in range(world_size)]


def run(program: Sequence[str], world_size: int = 1, timeout_seconds: float = 400) -> str:
    """Run ``program`` on all ranks to a good end and return rank 0's output; all ranks end when one fails."""
    return finish(start(program, world_size), timeout_seconds)


def finish(ranks: list[Rank], timeout_seconds: float = 400) -> str:
    """See ``ranks`` to a good end and return rank 0's output. When one fails, all end, and all are heard."""
    deadline, failed = time.monotonic() + timeout_seconds, False
    try:
        while (codes := [rank.poll() for rank in ranks]) != [0] * len(ranks):
            if any(codes) and not failed:
                failed, deadline = True, time.monotonic() + LAST_WORDS_SECONDS
            if (failed and None not in codes) or time.monotonic() >= deadline:
                words = "\n".join(f"rank {number} {rank.end()}" for number, rank in enumerate(ranks))
                raise AssertionError(f"{'a rank failed' if failed else f'more than {timeout_seconds} s'}\n{words}")
            time.sleep(LOOK_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return ranks[0].output()
