"""No arm is muted: a loss may have any scale, and what epsilon and clipping take of an update is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from curves import largest_difference, learn
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import PARITY_FLOAT32_RELATIVE

from kd_megatron.ranks import dist
from kd_megatron.training.setup import Run, prepare_run

SMALL = 1e-4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist.initialise()
    return write_inputs(tmp_path_factory.mktemp("shares"))


def make_run(inputs: Path, directory: Path, arm: str, scale: float = 1.0, **training: Any) -> Run:
    run = prepare_run(tiny_study(inputs, training=training), arm, 0, directory, str(inputs / "teacher"))
    run.objective.weights = {term: scale * weight for term, weight in run.objective.weights.items()}
    return run


def losses(run: Run, num_steps: int) -> list[dict[str, float]]:
    rows = learn(run, num_steps, 1e-3)
    return [{term: value for term, value in row.items() if term != "grad_norm"} for row in rows]


@pytest.mark.parametrize("arm", ARMS)
def test_a_loss_of_a_ten_thousandth_trains_the_same_curve(inputs: Path, tmp_path: Path, arm: str) -> None:
    whole, small = (make_run(inputs, tmp_path / str(scale), arm, scale) for scale in (1.0, SMALL))
    curves = [losses(run, 20) for run in (whole, small)]
    assert largest_difference(*curves) <= PARITY_FLOAT32_RELATIVE
    assert max(float(run.engine.epsilon_share()) for run in (whole, small)) < 0.01
    for run in (whole, small):
        run.close()


def test_a_large_epsilon_mutes_the_small_loss_and_is_seen(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "minilm", SMALL, epsilon=1e-6)
    assert float(run.engine.epsilon_share()) == 0.0, "before the first update there is none"
    losses(run, 3)
    assert float(run.engine.epsilon_share()) > 0.5
    run.close()


@pytest.mark.parametrize(
    ("stage", "precision"), [("zero0", "fp32"), ("zero0", "bf16"), ("zero2", "bf16"), ("zero3", "fp32")]
)
def test_the_share_is_that_of_the_moments(inputs: Path, tmp_path: Path, stage: str, precision: str) -> None:
    """Against the definition, over all weights, at every stage: partitions are of the same weights."""
    epsilon = 1e-4
    run = make_run(inputs, tmp_path, "scratch", epsilon=epsilon, ds_config=stage, precision=precision)
    losses(run, 3)
    kept = whole = 0.0
    for state in run.engine._adam.state.values():
        first, second = state["exp_avg"].double().abs(), (state["exp_avg_sq"].double() / (1 - 0.98**3)).sqrt()
        there = second > 0
        kept += float((first / (second + epsilon))[there].sum())
        whole += float((first / second)[there].sum())
    assert 0.05 < 1 - kept / whole < 0.95
    assert float(run.engine.epsilon_share()) == pytest.approx(1 - kept / whole, rel=1e-9)
    run.close()


def test_what_clipping_takes_is_the_mean_over_the_steps(inputs: Path, tmp_path: Path) -> None:
    clipping = 0.01
    run = make_run(inputs, tmp_path, "scratch", gradient_clipping=clipping)
    norms = []
    for _ in range(3):
        norms.append(learn(run, 1, 1e-3)[0]["grad_norm"])
    from curves import Direct

    from kd_megatron.ranks.signals import StopRequest
    from kd_megatron.training.loop import charge, one_step

    for _ in range(2):
        one_step(run, Direct(run.micro_batches), rate=1e-3, stop=StopRequest())
        charge(run)
        norms.append(float(run.step.watch.grad_norm))
    reading = run.step.read()
    assert all(norm > clipping for norm in norms)
    assert reading.clipped_share == pytest.approx(sum(1 - clipping / norm for norm in norms[-2:]) / 2, rel=1e-5)
    assert run.step.read().clipped_share == 0.0, "each reading begins anew"
    run.close()


def test_without_clipping_nothing_is_clipped(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "vanilla_kd")
    assert torch.is_tensor(run.step.watch.grad_norm)
    learn(run, 1, 1e-3)
    assert run.step.watch.clipping == 0.0
    run.close()
