"""Losses and gradient norms of a few real steps, without the loop's checkpoints and validations."""

from pathlib import Path

from kd_megatron.ranks.signals import StopRequest
from kd_megatron.recipe import StudyRecipe
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run

Curve = list[dict[str, float]]


class Direct:
    """Batches without a prefetch thread."""

    def __init__(self, make):
        self.get = make


def curve(study: StudyRecipe, arm: str, directory: Path, teacher: Path, num_steps: int, rate: float) -> Curve:
    """Train ``arm`` for ``num_steps``: every loss term, divided by its count, and the gradient norm, per step."""
    run = prepare_run(study, arm, 0, directory, str(teacher))
    rows = learn(run, num_steps, rate)
    run.close()
    return rows


def learn(run: Run, num_steps: int, rate: float) -> Curve:
    """The next ``num_steps`` of a run, as `curve` gives them."""
    rows = []
    for _ in range(num_steps):
        one_step(run, Direct(run.micro_batches), rate=rate, stop=StopRequest())
        charge(run)
        reading = run.step.read()
        losses = {term: value / reading.counts[term] for term, value in reading.sums.items()}
        rows.append({**losses, "grad_norm": reading.grad_norm})
    return rows


def largest_difference(one: Curve, two: Curve) -> float:
    """The largest relative difference of any value at any step."""
    assert len(one) == len(two)
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, two, strict=True) for key in a)
