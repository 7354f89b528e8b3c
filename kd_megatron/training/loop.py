"""The training loop. Everything it does is on this page."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch

from kd_megatron.console.logs import say
from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.errors import Interrupted, NonFiniteError
from kd_megatron.ranks import dist, stages
from kd_megatron.ranks.signals import StopRequest, stop_requests
from kd_megatron.tensors import Batch
from kd_megatron.training.schedule import learning_rate
from kd_megatron.training.setup import Run
from kd_megatron.training.step import StepReading


class Progress:
    """Averages over the steps since the last report."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._start_at = (run.ledger.tokens, run.charged_seconds(), run.ledger.fraction(run.study.budget))
        self._begin()

    def _begin(self) -> None:
        self.tokens, self.seconds = self.run.ledger.tokens, self.run.charged_seconds()

    def report(self, reading: StepReading, fraction: float, rate: float) -> None:
        """Write the row and the line of the steps since the last report, and begin anew."""
        run = self.run
        terms = {term: value / max(1.0, reading.counts[term]) for term, value in reading.sums.items()}
        loss = sum(run.objective.weights[term] * value for term, value in terms.items())
        seconds = max(run.charged_seconds() - self.seconds, 1e-9)
        speed = (run.ledger.tokens - self.tokens) / seconds
        row = {
            **run.spent(),
            "budget_fraction": fraction,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": reading.grad_norm,
            "clipped_share": reading.clipped_share,
            "epsilon_share": self._epsilon_share(),
            "tokens_per_second": speed,
            **{f"loss/{term}": value for term, value in terms.items()},
        }
        run.metrics.write(row)
        say(self._line(fraction, loss, rate, reading.grad_norm, speed))
        self._begin()

    def _epsilon_share(self) -> float:
        with self.run.ledger.clock("validation"):  # a measurement, which no arm is charged for
            return float(self.run.engine.epsilon_share())

    def _line(self, fraction: float, loss: float, rate: float, grad_norm: float, speed: float) -> str:
        run, ledger = self.run, self.run.ledger
        budget = run.study.budget
        total = max(run.charged_seconds(), 1e-9)
        shares = " ".join(
            f"{name} {100 * ledger.seconds(account) / total:.0f} %"
            for account, name in (("teacher", "teacher"), ("loss", "loss"), ("data_wait", "data"))
        )
        return (
            f"{run.arm} seed {run.seed} | step {ledger.steps:,} | {100 * fraction:5.1f} % of {budget.limit:g} "
            f"{budget.unit} | loss {_number(loss, 4)} | lr {rate:.2e} | grad norm {_number(grad_norm, 2)} | "
            f"{speed:,.0f} tokens/s | {shares} | {self._left(fraction)} left"
        )

    def _left(self, fraction: float) -> timedelta:
        _, seconds, begun = self._start_at
        done = max(fraction - begun, 1e-9)
        elapsed = self.run.charged_seconds() - seconds
        return timedelta(seconds=round(max(0.0, self.run.until - fraction) * elapsed / done))


def _number(value: float, digits: int) -> str:
    """``value`` with so many decimals; a small one with an exponent, as relations may differ by millionths."""
    return f"{value:.{digits}f}" if value == 0.0 or abs(value) >= 10.0 ** (1 - digits) else f"{value:.1e}"


def train(run: Run) -> None:
    """Train until the budget is spent, or this objective's share of it (`phases.py`). Collective.

    Raises:
        Interrupted: a signal asked for it; a checkpoint was saved and the same command resumes.
        NonFiniteError: a loss or gradient was not finite; the weights were not updated from that step on.
    """
    recipe, ledger, budget = run.study.training, run.ledger, run.study.budget
    progress = Progress(run)
    with (
        stages.stage("training"),
        naming_last_checkpoint(run),
        stop_requests() as stop,
        Prefetcher(run.micro_batches, first=ledger.steps) as batches,
    ):
        fraction = budget_fraction(run)
        stopping = ledger.steps > 0 and pass_markers(run, fraction, stop)  # a validation that a stop cut short
        while fraction < run.phase_until and not stopping:
            rate = learning_rate(recipe, fraction, ledger.steps, run.study.data.sequence_length, run.branch)
            with run.meter.step():
                stopping = one_step(run, batches, rate, stop)
            charge(run)
            stages.beat(ledger.steps)
            fraction = budget_fraction(run)
            if ledger.steps % recipe.log_every_steps == 0 or fraction >= run.phase_until:
                progress.report(run.step.read(), fraction, rate)
            stopping = stopping or pass_markers(run, fraction, stop)
            if checkpoint_is_due(run, fraction) or stopping:
                fraction = save(run)
        finish_saving(run)
        if stopping and fraction < run.until:
            raise Interrupted(
                given=f"stopped by {who_stopped(stop)} at step {ledger.steps}",
                fix="run the same command again: it resumes from the checkpoint just saved",
            )
    ledger.overshoot = ledger.spent(budget) - run.until * budget.limit


@contextlib.contextmanager
def naming_last_checkpoint(run: Run) -> Iterator[None]:
    """Let a `NonFiniteError` of the ``with`` block say from which checkpoint the run goes on."""
    try:
        yield
    except NonFiniteError as error:
        run.checkpoints.close()
        newest = max(run.checkpoints.directory.glob("step_*"), default=None)
        good = f"the last good checkpoint is {newest}" if newest else "there was no checkpoint yet"
        raise NonFiniteError(error.given, f"{error.expected}; {good}", error.fix) from error


def who_stopped(stop: StopRequest) -> str:
    """The signals and the ranks that had them, the same on every rank. Collective."""
    named = [f"{name} on rank {rank}" for rank, name in enumerate(dist.gather(stop.signal)) if name]
    return (stop.signal or "a signal") if dist.world_size() == 1 else ", ".join(named)


def budget_fraction(run: Run) -> float:
    """The share of the budget that is spent, by rank 0's ledger, on every rank (docs/fairness.md, clause 5)."""
    return dist.number_from_main(run.ledger.fraction(run.study.budget))


def one_step(run: Run, batches: Prefetcher[list[Batch]], rate: float, stop: StopRequest) -> bool:
    """One optimizer step on the next global batch, its time charged as it passes; whether some rank is to stop."""
    seed_random_numbers(run.seed, run.ledger.steps)
    with run.ledger.clock("data_wait"):
        micro_batches = batches.get(run.ledger.steps)
    run.module.train()
    run.place.trained_last = run.place.number
    return run.step.run(micro_batches, rate, bool(stop) or run.checkpoints.failed)


def seed_random_numbers(seed: int, step: int) -> None:
    """Dropout draws are a function of (run seed, step, rank), so that a resume needs no saved generator state."""
    number = hash((seed, step, dist.rank()))
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` asks every backend there is, at 1 ms a step
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)


def charge(run: Run) -> None:
    """Book one step's FLOPs and tokens."""
    ledger, batch_size, length = run.ledger, run.study.training.global_batch_size, run.study.data.sequence_length
    for account in ("student", "loss"):
        ledger.charge_flops(account, batch_size * getattr(run.cost, account))
    ledger.steps += 1
    samples = ledger.steps * batch_size
    unique_tokens = run.loader.unique_samples(samples) * length
    first_visits = (unique_tokens - ledger.unique_tokens) // length
    ledger.charge_flops("teacher", run.cost.teacher_flops(batch_size, first_visits))
    ledger.tokens, ledger.unique_tokens = samples * length, unique_tokens


def markers_passed(markers: list[float], fraction: float) -> int:
    """How many of ``markers`` lie at or before ``fraction`` of the budget."""
    return sum(marker <= fraction for marker in markers)


def pass_markers(run: Run, fraction: float, stop: StopRequest) -> bool:
    """Validate if a marker was passed; whether some rank was asked to stop meanwhile, which cuts it short."""
    due = markers_passed(run.study.validation.at, fraction)
    if due > run.markers.validations_done:
        if fraction < run.until and validate(run, fraction, stop) is None:
            return True
        run.markers.validations_done = due
    return False


def validate(run: Run, fraction: float, stop: StopRequest | None = None) -> dict[str, Any] | None:
    """Measure the student on the held-out split and write the row; None when ``stop`` on some rank cut it short.

    The phase that is measured is that of the newest step: a stop at a boundary may put its validation off until the run
    goes on, with the next objective.

    Raises `NonFiniteError` as `Step.check` does.
    """
    run.step.check()
    with run.ledger.clock("validation"), stages.stage("validation"):
        embeddings = run.engine.full_weight(run.module.student.embeddings)
        scores = run.validation.measure(
            *(run.module.student, embeddings, run.has_trained_head, run.first_head),
            lambda: stop is not None and bool(stop),
        )
    if scores is None:
        return None
    row = {f"validation/{name}": value for name, value in scores.items()}
    run.metrics.write({**run.spent(), "budget_fraction": fraction, **row})
    return scores


def checkpoint_is_due(run: Run, fraction: float) -> bool:
    """After a step: by number, at a mark of the budget, at the end, and at that of a phase."""
    every = run.ledger.steps % run.study.training.checkpoint_every_steps == 0
    return every or fraction >= run.phase_until or is_kept_for_good(run, fraction)


def is_kept_for_good(run: Run, fraction: float) -> bool:
    """Whether a checkpoint of this moment stays when newer ones come."""
    recipe = run.study.training
    if recipe.keep_every_steps is not None and run.ledger.steps % recipe.keep_every_steps == 0:
        return True
    return markers_passed(recipe.keep_at, fraction) > run.markers.checkpoints_kept


def save(run: Run) -> float:
    """Take a checkpoint; it is written while training goes on.

    Returns:
        The share of the budget that it was taken at. Looking at the steps before may have taken charged time, and the
        phase that the checkpoint names must be that of its own ledger.

    Raises:
        NonFiniteError: a step before was not finite; nothing is taken.
        OutputError: the checkpoint before could not be written.
    """
    run.step.check()
    fraction = budget_fraction(run)
    with run.ledger.clock("checkpoint"), stages.stage("checkpoint"):
        for_good = is_kept_for_good(run, fraction)
        run.markers.checkpoints_kept = markers_passed(run.study.training.keep_at, fraction)
        run.checkpoints.save(run.engine, run.ledger.steps, run.state(fraction), for_good)
    return fraction


def finish_saving(run: Run) -> None:
    """Wait until the last checkpoint is on the disk. Raises `OutputError`, on all ranks, when it cannot be written."""
    with run.ledger.clock("checkpoint"):
        run.checkpoints.wait()
