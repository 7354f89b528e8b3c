import re
import threading
from pathlib import Path

import pytest
import torch.distributed as torch_dist

from kd_megatron.errors import EnvironmentFault
from kd_megatron.finetune.grid import work_queue
from kd_megatron.finetune.grid.halving import num_runs, planned
from kd_megatron.finetune.grid.jobs import Job
from kd_megatron.finetune.grid.view import words_of_left
from kd_megatron.finetune.grid.work_queue import Ended, WorkQueue
from kd_megatron.finetune.places import Cell
from kd_megatron.ranks import dist, stages

RATES, BATCHES = (1e-5, 3e-5, 5e-5, 8e-5), (16, 32)


def jobs_of(task: str, size: int, seeds: int = 2) -> list[Job]:
    cells = [Cell(task, rate, batch, seed) for rate in RATES for batch in BATCHES for seed in range(seeds)]
    return [Job(cell, f"{task}-{number}", Path(), size, size) for number, cell in enumerate(cells)]


def score_of(cell: Cell) -> float:
    return cell.learning_rate * cell.batch_size + cell.seed


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "WAIT_SECONDS", 0.001)


@pytest.fixture
def store(free_port: int) -> torch_dist.Store:
    return torch_dist.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)


def work_off(queue: WorkQueue, taken: list[Job]) -> None:
    while job := queue.take():
        taken.append(job)
        queue.end(job, score_of(job.cell), "")


def test_the_longest_first_then_in_the_order_of_the_grid():
    jobs = [*jobs_of("short", 10), *jobs_of("long", 500), *jobs_of("middle", 50)]
    taken: list[Job] = []
    work_off(WorkQueue(torch_dist.HashStore(), 0, jobs, {}), taken)
    assert taken == [*jobs[16:32], *jobs[32:], *jobs[:16]]


@pytest.mark.parametrize("halving", [False, True])
def test_ranks_share_the_cells_and_each_is_run_once(store: torch_dist.Store, halving: bool):
    jobs = [*jobs_of("a", 10, seeds=3), *jobs_of("b", 20, seeds=3)]
    heard: list[list[Ended]] = [[] for _ in range(3)]
    taken: list[list[Job]] = [[] for _ in range(3)]
    together = threading.Barrier(3)

    def rank(number: int) -> None:
        client = torch_dist.TCPStore(store.host, store.port, is_master=False)
        queue = WorkQueue(client, number, jobs, {}, halving, heard[number].append)
        together.wait()
        work_off(queue, taken[number])
        assert queue.num_cells() == (total, total)

    total = 2 * num_runs(8, 3) if halving else len(jobs)
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    run = [job.cell for part in taken for job in part]
    assert len(run) == len(set(run)) == total
    assert heard[0] == heard[1] == heard[2], "every rank hears of every cell, in one order"
    assert {ended.job.cell for ended in heard[0]} == set(run)
    if halving:
        cells, scores = [job.cell for job in jobs[:24]], {cell: score_of(cell) for cell in run}
        assert {cell for cell in run if cell.task == "a"} == set(planned(cells, scores))


def test_finished_cells_are_not_taken_and_a_failed_one_is_left_alone():
    jobs = jobs_of("a", 10)
    queue = WorkQueue(torch_dist.HashStore(), 0, jobs, {job.cell: 0.5 for job in jobs[:10]})
    first = queue.take()
    assert first == jobs[10]
    queue.end(first, None, "diverged")
    taken: list[Job] = []
    work_off(queue, taken)
    assert taken == jobs[11:]
    assert queue.num_cells() == (15, 16)


def test_a_round_with_a_failed_cell_ends_the_plan_of_its_task_alone():
    jobs = [*jobs_of("a", 10), *jobs_of("b", 5)]
    queue = WorkQueue(torch_dist.HashStore(), 0, jobs, {}, halving=True)
    taken: list[Job] = []
    while job := queue.take():
        taken.append(job)
        queue.end(job, None if job is jobs[2] else score_of(job.cell), "")
    assert sum(job.cell.task == "a" for job in taken) == 8, "the first seed's, and no second round"
    assert sum(job.cell.task == "b" for job in taken) == num_runs(8, 2)


def test_a_waiting_rank_gets_the_next_round_or_hears_of_a_stop(store: torch_dist.Store):
    jobs = jobs_of("a", 10)[:4]  # two settings, two seeds
    one, other = (WorkQueue(store, rank, jobs, {}, halving=True) for rank in range(2))
    mine, theirs = one.take(), other.take()
    assert (mine, theirs) == (jobs[0], jobs[2])
    assert mine
    assert theirs
    one.end(mine, 0.1, "")
    waits = []
    marked = stages.current().at

    def finish_after_a_while() -> None:
        waits.append(1)
        assert stages.current().waits, "so that a rank that hangs is blamed, and not this one"
        if len(waits) == 3:
            other.end(theirs, 0.9, "")

    assert one.take(finish_after_a_while) == jobs[3], "the better setting's second seed"
    assert len(waits) == 3
    assert not stages.current().waits
    assert stages.current().at == marked, "waiting is no progress: nobody would ever hear of a hang"
    assert other.take(one.stop) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "not known"), (20, "less than a minute"), (100, "2 min left"), (3 * 3600 + 120, "3 h 2 min left")],
)
def test_words_of_time(seconds: float | None, words: str):
    assert re.search(words, words_of_left(seconds))


def test_ranks_share_gpus_only_where_a_stage_allows_it():
    assert [dist.gpu_of(rank, 2, share=True).index for rank in range(5)] == [0, 1, 0, 1, 0]
    assert [dist.gpu_of(rank, 2, share=False).index for rank in range(2)] == [0, 1]
    with pytest.raises(EnvironmentFault, match=r"local rank 2 on a node with 2 GPUs[\s\S]*at most 2 processes"):
        dist.gpu_of(2, 2, share=False)
