"""What a cached teacher is charged (docs/fairness.md, clause 14): each window once a run, whoever filled it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_teacher_cache import POOL, Student, study
from tiny_study import write_inputs
from tolerances import FLOPS_RELATIVE

from kd_megatron.engine.flops import layer_flops, projection_flops
from kd_megatron.models.build import model_config
from kd_megatron.training.cached_teacher import OTHERS

EPOCH = POOL // 8  # steps
LONG = 1000.0  # seconds: whatever a test takes, it is far less


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ledger"))


@pytest.fixture
def student(inputs: Path, tmp_path: Path) -> Callable[..., Student]:
    made: list[Student] = []

    def make(num_students: int = 1, **changes: Any) -> Student:
        recipe = study(inputs, tmp_path / "cache", cache={"num_students": num_students}, **changes)
        made.append(Student(recipe, "minilm", tmp_path / f"run{len(made)}", seed=len(made)))
        return made[-1]

    return make


def seconds(student: Student, account: str) -> float:
    return student.run.ledger.seconds(account)


def say_a_row_took(directory: Path, seconds_per_row: float) -> None:
    (path,) = directory.glob("cache/*/fill_cost.json")
    path.write_text(json.dumps({"seconds": 3 * seconds_per_row, "rows": 3}))


@pytest.mark.parametrize("num_students", [1, 2, 5])
def test_flops_are_those_of_first_visits_shared_and_of_projections(
    student: Callable[..., Student], inputs: Path, num_students: int
) -> None:
    config = model_config(str(inputs / "teacher"))
    again = 3 * projection_flops(config, 16)  # minilm taps the fourth layer: three layers lie below its projections
    first = 3 * layer_flops(config, 16) / num_students
    for _ in ("fills", "finds it filled"):
        learner = student(num_students)
        for steps, visits in ((3, 3 * 8), (EPOCH - 3, POOL), (4, POOL)):
            learner.learn(steps)
            expected = visits * first + learner.run.ledger.steps * 8 * again
            assert learner.run.ledger.flops("teacher") == pytest.approx(expected, rel=FLOPS_RELATIVE)
        assert learner.run.ledger.flops(OTHERS) == 0
        learner.close()


def test_a_first_visit_counts_once_when_a_run_is_resumed(student: Callable[..., Student]) -> None:
    whole, resumed = student(), None
    whole.learn(3)
    state = whole.run.state(0.0)
    whole.learn(EPOCH + 2)
    whole.close()
    resumed = student()
    resumed.run.ledger.restore(state["ledger"])
    resumed.learn(EPOCH + 2)
    resumed.close()
    assert resumed.run.ledger.flops("teacher") == pytest.approx(whole.run.ledger.flops("teacher"), rel=FLOPS_RELATIVE)


@pytest.mark.parametrize("num_students", [1, 4])
def test_the_seconds_of_filling_are_shared(student: Callable[..., Student], num_students: int) -> None:
    learner = student(num_students)
    learner.learn(EPOCH)
    cost = learner.teacher.store.fill_cost
    assert cost is not None
    assert cost.rows == POOL
    others = seconds(learner, OTHERS)
    assert others == pytest.approx(cost.seconds * (1 - 1 / num_students), abs=1e-9)
    assert seconds(learner, "teacher") >= cost.seconds / num_students
    learner.learn(EPOCH)
    assert seconds(learner, OTHERS) == others
    learner.close()


@pytest.mark.parametrize("num_students", [1, 4])
def test_who_finds_it_filled_is_charged_for_each_window_once(
    student: Callable[..., Student], tmp_path: Path, num_students: int
) -> None:
    first = student(num_students)
    first.learn(EPOCH)
    first.close()
    say_a_row_took(tmp_path, LONG)
    second = student(num_students)
    for steps, visits in ((3, 3 * 8), (EPOCH - 3, POOL), (EPOCH + 3, POOL)):
        second.learn(steps)
        assert 0 <= seconds(second, "teacher") - visits * LONG / num_students < LONG / num_students
    assert second.teacher_forwards == 0
    assert seconds(second, OTHERS) == 0
    second.close()


def test_a_partly_filled_micro_batch_is_charged_for_what_the_teacher_took(
    student: Callable[..., Student], tmp_path: Path
) -> None:
    small = student(data={"unique_tokens": 16 * 16})
    small.learn(2)
    small.close()
    say_a_row_took(tmp_path, LONG)
    large = student()
    large.learn(EPOCH)
    found = EPOCH - large.teacher_forwards  # micro-batches of rows that were all there
    assert 0 <= seconds(large, "teacher") - 8 * found * LONG < LONG
    large.close()


def test_rows_of_unknown_cost_are_made_again_so_that_it_is_known(
    student: Callable[..., Student], tmp_path: Path
) -> None:
    first = student()
    first.learn(EPOCH)
    first.close()
    next(tmp_path.glob("cache/*/fill_cost.json")).unlink()
    second = student()
    second.learn(EPOCH)
    assert second.teacher_forwards == 1
    cost = second.teacher.store.fill_cost
    assert cost is not None
    assert cost.rows == 8
    assert seconds(second, "teacher") >= POOL * cost.seconds_per_row
    second.close()
