"""The prefetcher: items in order, prepared ahead, exceptions where they are asked for, a clean end."""

import threading

import pytest

from kd_megatron.data.prefetch import DEPTH, Prefetcher


def test_items_come_in_order_from_one_background_thread() -> None:
    threads = set()

    def make(index: int) -> int:
        threads.add(threading.current_thread())
        return index * index

    with Prefetcher(make, first=5) as prefetcher:
        assert [prefetcher.get(index) for index in range(5, 50)] == [index * index for index in range(5, 50)]
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_the_next_items_are_made_before_they_are_asked_for() -> None:
    made = {index: threading.Event() for index in range(10)}
    with Prefetcher(lambda index: made[index].set(), first=0) as prefetcher:
        prefetcher.get(0)
        assert all(made[1 + ahead].wait(timeout=60) for ahead in range(DEPTH))
        assert not made[1 + DEPTH].is_set()


def test_an_index_out_of_turn_is_made_when_asked_for() -> None:
    with Prefetcher(lambda index: index, first=0) as prefetcher:
        assert [prefetcher.get(index) for index in (0, 7, 8, 3, 3)] == [0, 7, 8, 3, 3]


def test_an_exception_is_raised_by_get_of_its_index_only() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise KeyError("no such item")
        return index

    with Prefetcher(make, first=1) as prefetcher:
        assert prefetcher.get(1) == 1
        for _ in range(2):
            with pytest.raises(KeyError, match="no such item"):
                prefetcher.get(2)
        assert prefetcher.get(3) == 3


def test_close_ends_the_thread_even_with_a_failed_item_under_way() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(lambda index: 1 // index, first=0)
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before
