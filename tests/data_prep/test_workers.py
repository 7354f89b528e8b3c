"""The pool: ordered, bounded, and what a worker raises is raised."""

import os
import time

import pytest

from data_prep import workers
from data_prep.workers import WorkerPool
from kd_megatron.errors import DataError, EnvironmentFault


def square(number):
    workers.report(1, number)
    return number * number


def fail(number):
    raise DataError(given=f"file {number}", expected="another", fix="change it")


def work_for_an_hour(number):
    for _ in range(36_000):
        time.sleep(0.1)
        workers.report(1, 1)


def die(number):
    os._exit(9)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_in_order_input_not_read_ahead_progress_summed(num_workers):
    taken, seen = [], []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with WorkerPool(num_workers) as pool:
        results = pool.map(square, items(), on_progress=lambda documents, tokens: seen.append((documents, tokens)))
        assert next(results) == 0
        assert len(taken) <= 2 * num_workers
        assert list(results) == [number * number for number in range(1, 20)]
    assert seen[-1] == (20, sum(range(20)))


def test_errors_cross_processes_with_their_message():
    with WorkerPool(2) as pool, pytest.raises(DataError, match=r"file 1\n  expected: another\n  to fix: change it"):
        list(pool.map(fail, [1]))


def test_a_worker_that_dies_is_one_clear_error():
    with WorkerPool(2) as pool, pytest.raises(EnvironmentFault, match="fewer"):
        list(pool.map(die, [1]))


@pytest.mark.timeout(120)
def test_a_parent_that_gives_up_does_not_wait_for_the_work():
    def give_up(num_documents, num_tokens):
        if num_documents:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), WorkerPool(2) as pool:
        list(pool.map(work_for_an_hour, [1, 2], on_progress=give_up))
