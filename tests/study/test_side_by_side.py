"""Several processes at one study: who may take which piece, and a study that two finish though one is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from processes import ROOT, environment
from tiny_study import tiny_study, write_inputs

from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.files import locks
from kd_megatron.launch import workers
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout, taking
from kd_megatron.study.piece import Piece
from kd_megatron.study.runner import run_study
from kd_megatron.study.taking import PLACE, Taker


class Pieces:
    """Pieces by name, each finished when its name is in ``done``."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def one(self, name: str, **facts: object) -> Piece:
        return Piece("kind", name, lambda: name in self.done, lambda: self.done.add(name), **facts)


def names(taker: Taker, given_up: tuple[str, ...] = ()) -> tuple[str, str] | None:
    taken = taker.take(given_up)
    return None if taken is None else (taker.work[taken[0]].label, taken[1])


def test_two_processes_take_different_pieces_and_keep_a_students_order(tmp_path):
    made = Pieces()
    work = [made.one("a", of="A"), made.one("a's branch", of="A"), made.one("b", of="B")]
    first, second = Taker(work, tmp_path), Taker(work, tmp_path)
    assert names(first) == ("a", "run")
    assert names(second) == ("b", "run")
    third = Taker(work, tmp_path)
    assert names(third) is None  # a's branch waits for a
    made.done.add("a")
    assert names(third) == ("a", "finished")
    assert names(third) == ("a's branch", "run")


def test_what_a_process_held_is_free_when_it_lets_go(tmp_path):
    made = Pieces()
    first, second = (Taker([made.one("a")], tmp_path) for _ in range(2))
    assert names(first) == ("a", "run")
    assert names(second) is None
    first.release()
    assert names(second) == ("a", "run")


def test_a_barrier_waits_for_all_before_it_and_holds_all_after_it(tmp_path):
    made = Pieces()
    work = [made.one("trial"), made.one("choice", barrier=True), made.one("run")]
    first, second = Taker(work, tmp_path), Taker(work, tmp_path)
    assert names(first) == ("trial", "run")
    assert names(second) is None
    made.done.add("trial")
    first.release()
    assert [names(second), names(second)] == [("trial", "finished"), ("choice", "run")]
    assert names(first) is None
    made.done.add("choice")
    assert [names(first), names(first)] == [("choice", "finished"), ("run", "run")]


def test_a_piece_that_is_made_of_pieces_is_entered_by_all(tmp_path):
    made = Pieces()
    work = [made.one("cell", is_shared=True)]
    assert [names(Taker(work, tmp_path)) for _ in range(2)] == [("cell", "run")] * 2


def test_a_student_that_is_given_up_keeps_none_waiting(tmp_path):
    made = Pieces()
    work = [made.one("a", of="A"), made.one("b", of="B")]
    assert names(Taker(work, tmp_path), given_up=("A",)) == ("a", "given up")


def test_a_study_whose_budget_is_time_has_the_machine_to_itself(tmp_path):
    recipe = tiny_study(tmp_path, budget={"tokens": None, "hours": 1.0})
    timed, other = (taking.alone_if_timed(recipe, tmp_path) for _ in range(2))
    with timed, pytest.raises(OutputError, match="budget is time"), other:
        pass
    counted = tiny_study(tmp_path)
    with taking.alone_if_timed(counted, tmp_path), taking.alone_if_timed(counted, tmp_path):
        pass


def test_a_rank_of_several_starts_no_workers(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="several ranks"):
        workers.run_workers(["study", "recipe.yaml"], 2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Two arms, three seeds, a branch each; long enough that two processes really share them."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    study = tiny_study(
        inputs,
        seeds=[0, 1, 2],
        budget={"tokens": 120 * 8 * 16},
        markers={"at": [0.5], "decay": 0.2},
        validation={"at": [1.0]},
    )
    return study.model_copy(update={"arms": {name: study.arms[name] for name in ("scratch", "minilm")}})


def hashes(directory):
    """Run -> the hash of what it exported."""
    found = directory.glob("arms/**/summary.json")
    return {str(path.parent.relative_to(directory)): layout.finished_run(path.parent)["export_hash"] for path in found}


@pytest.fixture(scope="module")
def by_one(recipe, tmp_path_factory):
    directory = tmp_path_factory.mktemp("one") / "tiny"
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    run_study(recipe, directory, write_report)
    torch.set_num_threads(num_threads)
    return hashes(directory)


def _on_two_cpus():
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


@contextlib.contextmanager
def started(recipe, directory, num):
    """``study --workers NUM``, killed at the end of the block if it still runs."""
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    program = [sys.executable, "-m", "kd_megatron", "study", str(path), "--output", str(directory)]
    own = {key: value for key, value in environment().items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    process = subprocess.Popen(
        [*program, "--workers", str(num)],
        env=own,
        preexec_fn=_on_two_cpus,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def children(process):
    return [int(pid) for pid in (open(f"/proc/{process.pid}/task/{process.pid}/children").read()).split()]


def test_two_workers_finish_the_study_that_one_makes_though_one_is_killed(recipe, by_one, tmp_path):
    """The killed one's piece is taken over and resumed; the students are bit for bit those of one process."""
    directory = tmp_path / "tiny"
    with started(recipe, directory, 2) as process:
        lines, killed = [], False
        for line in process.stdout:
            lines.append(line)
            if not killed and line.startswith("2 |") and "step 20" in line:
                second = max(children(process))
                os.kill(second, signal.SIGKILL)
                killed = True
        assert process.wait() == 0, "".join(lines)
    assert killed
    assert hashes(directory) == by_one
    assert (directory / "report" / "results.json").is_file()
    begun = [line for line in lines if ": pretrain" in line and "finished before" not in line]
    assert {line[0] for line in begun} == {"1", "2"}
    assert len(begun) == 6 + 1  # each once, but for the one that was taken over


def test_a_signal_reaches_the_workers_and_they_save(recipe, tmp_path):
    directory = tmp_path / "tiny"
    with started(recipe, directory, 2) as process:
        for line in process.stdout:
            if "step 20" in line:
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        assert process.wait() == 75
    assert list(directory.glob("arms/*/seed_*/checkpoints/*"))


def test_workers_save_and_end_when_their_parent_is_killed(recipe, tmp_path):
    directory = tmp_path / "tiny"
    with started(recipe, directory, 2) as process:
        for line in process.stdout:
            if "step 20" in line:
                ours = children(process)
                process.kill()
                break
        deadline = time.monotonic() + 60
        while any(os.path.exists(f"/proc/{pid}") for pid in ours) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ours)
    with locks.exclusive(next((directory / PLACE).iterdir()), wait=False):
        pass  # nobody holds it
