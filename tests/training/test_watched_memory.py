"""The watchdog looks five times a second where the work is. That must not keep anything alive."""

import threading
from collections.abc import Iterator

import pytest

from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.ranks import stages
from kd_megatron.recipe import StudyRecipe, config


@pytest.fixture
def looks_all_the_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[stages.CodePosition]]:
    """A thread that asks where the main thread is, far more often than the watchdog does; what it was told."""
    monkeypatch.setattr(stages, "QUIET_SECONDS", 0.0)
    ended, seen = threading.Event(), list[stages.CodePosition]()

    def look() -> None:
        while not ended.wait(0.001):
            seen.append(stages.place())

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def peaks() -> tuple[int, int, int]:
    """Of a micro-batch whose layers are run again in its backward pass, where a layer kept alive shows."""
    recipe = config.load("recipes/debug.yaml", StudyRecipe, ["training.activation_checkpointing=true"])
    held = simulate_arm(resolve_precision(recipe), "scratch", vocab_size=2000)
    return held.with_gradients, held.forward, held.backward


@pytest.fixture
def unwatched() -> tuple[int, int, int]:
    return peaks()


def test_looking_keeps_nothing_alive(unwatched: tuple[int, int, int], looks_all_the_time: list[stages.CodePosition]):
    assert [peaks() for _ in range(3)] == [unwatched] * 3
    assert len({place.where for place in looks_all_the_time}) > 10, "it saw the work at many places"


def test_nobody_looks_while_marks_come(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "_innermost_calls", lambda: pytest.fail("looked"))
    stages.beat()
    assert stages.place() == stages.CodePosition("its work", waits=False)
