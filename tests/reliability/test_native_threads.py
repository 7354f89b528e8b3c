"""The watchdog's looks end no process: read by faulthandler, the stacks did so within a second beside such threads."""

from pathlib import Path

import processes

WORKER = str(Path(__file__).with_name("native_threads.py"))


def test_looking_while_native_threads_come_and_go_ends_nothing() -> None:
    num_threads, num_looks = map(int, processes.run([WORKER, "2"]).split())
    assert num_threads > 100
    assert num_looks > 1000
