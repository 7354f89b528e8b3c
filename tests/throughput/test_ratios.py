"""Nothing is slower than recorded, relative to what ran beside it in the same rounds; and a planted slow-down is seen.

Minutes of timing, so only with: ./launch.sh test -m throughput
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_steps import NUM_ROUNDS, PEER_PYTHON, RECORDED, cache_rows, kernel_rows, small_study, step_rows
from tolerances import KERNEL_RATIO_FALL, PLANTED_SLOW_DOWN, STEP_RATIO_FALL

from benchmarks import pages
from benchmarks.comparison import PEER, compare, refuse_slower
from benchmarks.rows import Row
from benchmarks.steps import throughput
from benchmarks.steps import variants as timed_arms
from kd_megatron.errors import SlowerError

pytestmark = [pytest.mark.throughput, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as recorded
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded() -> list[Row]:
    return pages.read(RECORDED)[0]


def test_fused_kernels_beside_eager(recorded: list[Row]):
    changes = compare(kernel_rows(), recorded)
    assert len(changes) == 3
    refuse_slower(changes, KERNEL_RATIO_FALL)


def test_every_arm_beside_scratch_and_ours_beside_hugging_face(recorded: list[Row]):
    with small_study() as (study, teacher):
        rows = step_rows(study, teacher)
    changes = compare(rows, recorded)
    assert len([change for change in changes if not change.row.name.startswith(PEER)]) == len(study.arms)
    assert not PEER_PYTHON or any(change.row.name.startswith(PEER) for change in changes)
    refuse_slower(changes, STEP_RATIO_FALL)


def test_a_warm_cache_beside_no_cache(recorded: list[Row]):
    with small_study() as (study, teacher):
        changes = compare(cache_rows(study, teacher), recorded)
    assert len(changes) == 2
    refuse_slower(changes, STEP_RATIO_FALL)


def test_a_planted_slow_down_of_one_arm_fails(recorded: list[Row]):
    """minilm loses a fifth of its tokens per second in its objective; nothing else changes."""
    with small_study() as (study, teacher):
        variants = [timed_arms.arm_variant(study, arm) for arm in ("scratch", "minilm", "tinybert")]
        with timed_arms.built(variants, teacher) as runs:

            def measured() -> list[Row]:
                steps = {name: run.step for name, run in runs.items()}
                device = runs["step/scratch"].run.device
                rounds = [throughput.time_round(steps, device, number) for number in range(NUM_ROUNDS)]
                return [throughput.run_row(run, rounds, runs, "step/scratch") for run in runs.values()]

            before = measured()
            refuse_slower(compare(before, recorded), STEP_RATIO_FALL)
            objective: Any = runs["step/minilm"].run.objective
            step_seconds = next(row for row in before if row.name == "step/minilm").p50_ms / 1000
            objective.forward = slowed(objective.forward, step_seconds * (1 / (1 - PLANTED_SLOW_DOWN) - 1))
            after = measured()
    for baseline in (before, recorded):
        changes = compare(after, baseline)
        with pytest.raises(SlowerError, match="step/minilm") as caught:
            refuse_slower(changes, STEP_RATIO_FALL)
        assert "step/tinybert" not in str(caught.value)


def slowed(forward: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wait_first(*arguments: Any) -> Any:
        time.sleep(seconds)
        return forward(*arguments)

    return wait_first
