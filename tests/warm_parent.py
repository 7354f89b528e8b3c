"""A process that has imported the libraries and forks programs, which then start in milliseconds instead of seconds.

What it forks is a process of its own, with its own environment, output and end; it can be killed and waited for as any
other. One order a line on stdin, as JSON, one number a line on stdout. When stdin ends, so does all that it started.
`processes` is the other end.

Neither it nor they are torn down at the end, of which some libraries complain at length: see `exit_process`.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from kd_megatron.console import logs
from kd_megatron.ranks.process import exit_process

children: set[int] = set()  # that were not reaped yet


def warm_up() -> None:
    """Import what a training run imports. Nothing is computed: that would start threads, which no fork takes along."""
    logs.quiet_libraries()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  # of the first engine, with all of torch's compiler
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM  # noqa: F401

    from kd_megatron.launch import preflight  # noqa: F401
    from kd_megatron.study import runner  # noqa: F401
    from kd_megatron.training import run  # noqa: F401

    gc.freeze()  # the children's collector need not look at it
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would leave threads, and their locks, behind"


def fork(program: list[str], environment: dict[str, str], output: str, fresh: bool) -> int:
    """Fork ``program``, arguments of the Python interpreter (``-m MODULE`` or a file first); its process id.

    A ``fresh`` one begins as from a shell, with an interpreter that has imported nothing.
    """
    child = os.fork()
    if child == 0:
        redirect(output)
        if fresh:
            os.execve(sys.executable, [sys.executable, *program], environment)
        exit_process(code_of(program, environment))
    children.add(child)
    return child


def code_of(program: list[str], environment: dict[str, str]) -> int:
    """Run ``program``; the exit code with which Python would end."""
    try:
        become(program, environment)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def redirect(output: str) -> None:
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, descriptor in enumerate((nothing, file, file)):
        os.dup2(descriptor, number)


def become(program: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    children.clear()
    del sys.modules["__main__"]
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = program, str(Path(program[0]).parent)
        runpy.run_path(program[0], run_name="__main__")


def reap(child: int) -> int:
    """The exit code of ``child`` (less than 0: the signal), when it has ended. Until then its number stays its own."""
    _, status = os.waitpid(child, 0)
    children.remove(child)
    return os.waitstatus_to_exitcode(status)


def serve() -> None:
    orders: dict[str, Any] = {"fork": fork, "reap": reap}
    for line in sys.stdin:
        order = json.loads(line)
        print(orders[order.pop("do")](**order), flush=True)
    for child in children:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    warm_up()
    serve()
    exit_process(0)
