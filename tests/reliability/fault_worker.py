"""Runs two ranks through each scenario that is named, all at once, and prints how they ended.

``python fault_worker.py DIRECTORY NAME ...``: the ranks are forked from one process that has torch loaded already.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kd_megatron.cli.main import report_error
from kd_megatron.errors import KdError, OutputError
from kd_megatron.ranks import dist, failures, signals, stages
from kd_megatron.ranks.ports import free_port

# Long enough for a machine with more processes than cores; a lost or hanging rank costs the test so many seconds.
LOST_SECONDS, HANG_SECONDS = 8, 9
LAST_STEP = 5


def train_until(what_then: Callable[[], None]) -> None:
    """Steps with a collective each; after the last one ``what_then`` happens."""
    with stages.stage("training"):
        for step in range(1, LAST_STEP + 1):
            dist.all_reduce(torch.ones(3))
            stages.beat(step)
        dist.barrier()
        time.sleep(2.0)  # in which the heartbeats tell of the last step
        what_then()
        dist.all_reduce(torch.ones(3))


def on(rank: int, act: Callable[[], None]) -> Callable[[], None]:
    return lambda: act() if dist.rank() == rank else None


def send_myself(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def sleep_for_ever() -> None:
    time.sleep(3600)


def fill_the_disk() -> None:
    raise OutputError(given="no space left on the disk while writing metrics.jsonl")


def work_long() -> None:
    """Longer than the hang's bound, but marking progress."""
    for _ in range(HANG_SECONDS + 3):
        time.sleep(1.0)
        stages.beat()


def prepare_data() -> None:
    """Longer than the hang's bound, without a mark, where none is asked for."""
    with stages.stage("data preparation", watched=False):
        time.sleep(HANG_SECONDS + 3)


def bug() -> None:
    raise TypeError("a bug")


SCENARIOS: dict[str, Callable[[], None]] = {
    "rank_1_killed": on(1, send_myself(signal.SIGKILL)),
    "rank_0_killed": on(0, send_myself(signal.SIGKILL)),
    "rank_1_stopped": on(1, send_myself(signal.SIGSTOP)),
    "rank_0_stopped": on(0, send_myself(signal.SIGSTOP)),
    "rank_1_hangs": on(1, sleep_for_ever),
    "rank_0_hangs": on(0, sleep_for_ever),
    "rank_0_fails": on(0, fill_the_disk),
    "rank_1_has_a_bug": on(1, bug),
    "rank_1_works_long": on(1, work_long),
    "rank_0_prepares": on(0, prepare_data),
    "rank_1_is_told_to_stop": on(1, send_myself(signal.SIGTERM)),
    "all_wait": on(1, lambda: dist.barrier()),  # rank 0 is in an all-reduce of other data
    "alone_and_hanging": sleep_for_ever,
    "rank_1_is_absent": lambda: None,
    "rank_2_is_absent": lambda: None,
}


def rank_of(name: str, rank: int, port: int, directory: Path) -> int:
    """One rank's whole life; returns its exit code."""
    world_size = {"alone_and_hanging": "1", "rank_2_is_absent": "3"}.get(name, "2")
    if name == "rank_2_is_absent" and rank == 1:
        time.sleep(1.0)  # so that rank 0's patience ends first, and takes the store away
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world_size, MASTER_PORT=str(port))
    os.environ.update(MASTER_ADDR="127.0.0.1", KD_LOST_SECONDS=str(LOST_SECONDS), KD_HANG_SECONDS=str(HANG_SECONDS))
    signals.install()
    stages.stacks_to(directory)
    try:
        with dist.joined():
            train_until(SCENARIOS[name])
    except KdError as error:
        report_error(str(error), error.said)
        return error.exit_code
    except TypeError:
        return 1
    return 0


def start(name: str, rank: int, port: int, directory: Path) -> int:
    """Fork one rank; its process id."""
    child = os.fork()
    if child == 0:
        output = os.open(directory / f"rank_{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = rank_of(name, rank, port, directory)
        sys.stderr.flush()
        os._exit(code)
    return child


def main(directory: Path, names: list[str]) -> None:
    ranks: dict[int, tuple[str, int]] = {}
    ports: set[int] = set()
    while len(ports) < len(names):
        ports.add(free_port())
    for name, port in zip(names, sorted(ports), strict=True):
        (directory / name).mkdir()
        for rank in range(1 if name in ("alone_and_hanging", "rank_1_is_absent") else 2):
            ranks[start(name, rank, port, directory / name)] = name, rank
    began, results = time.monotonic(), {name: [{}, {}] for name in names}
    while ranks and time.monotonic() - began < 90:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            time.sleep(0.05)
            lasting = {name for name, rank in ranks.values() if f"rank_{rank}_stopped" != name}
            if not lasting:
                break
            continue
        name, rank = ranks.pop(child)
        results[name][rank] = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}
    for child in ranks:  # those that were stopped, and any that never ended
        os.kill(child, signal.SIGKILL)
    for name in names:
        for rank, result in enumerate(results[name]):
            path = directory / name / f"rank_{rank}.txt"
            result["output"] = path.read_text() if path.exists() else ""
    print(json.dumps(results))


if __name__ == "__main__":
    assert failures.lost_seconds() > 0  # everything is imported before the first fork
    main(Path(sys.argv[1]), sys.argv[2:])
