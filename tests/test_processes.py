"""The programs that tests start: forked or fresh, they are processes of their own, and their ends are told in full."""

import signal
from pathlib import Path

import processes
import pytest

WORKER = """
import os, signal, sys, time
print(os.getpid(), *sys.argv[1:], "torch" in sys.modules, os.environ["RANK"], flush=True)
if "fail" in sys.argv:
    if os.environ["RANK"] == "1":
        sys.exit("I know why")
    os.kill(os.getpid(), signal.SIGSEGV)
if "wait" in sys.argv:
    time.sleep(600)
"""


@pytest.fixture
def worker(tmp_path: Path) -> str:
    path = tmp_path / "worker.py"
    path.write_text(WORKER, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("fresh", [False, True])
def test_ranks_have_a_process_and_an_output_of_their_own(worker: str, fresh: bool) -> None:
    ranks = processes.start([worker, "a b"], 2, fresh)
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    expected = [f"{rank.pid} a b {not fresh} {number}\n" for number, rank in enumerate(ranks)]
    assert [rank.output() for rank in ranks] == expected
    assert len({rank.pid for rank in ranks}) == 2


def test_a_killed_one_is_seen_to_be(worker: str) -> None:
    (rank,) = processes.start([worker, "wait"])
    assert rank.poll() is None
    rank.kill()
    assert rank.wait(60) == -signal.SIGKILL
    rank.kill()  # changes nothing


def test_when_one_fails_all_are_heard(worker: str) -> None:
    with pytest.raises(AssertionError) as caught:
        processes.run([worker, "fail"], 2)
    assert "rank 0 ended with -11 (SIGSEGV)" in str(caught.value)
    assert "rank 1 ended with 1" in str(caught.value)
    assert "I know why" in str(caught.value)
