"""What a run tells while it trains: one console line with units, and a row of ``metrics.jsonl``."""

from datetime import timedelta

from kd_megatron.console.logs import say
from kd_megatron.training.setup import Run
from kd_megatron.training.watch import Reading


class Progress:
    """Averages over the steps since the last report."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._start_at = (run.ledger.tokens, run.charged_seconds(), run.ledger.fraction(run.study.budget))
        self._begin()

    def _begin(self) -> None:
        self.tokens, self.seconds = self.run.ledger.tokens, self.run.charged_seconds()

    def report(self, reading: Reading, fraction: float, rate: float) -> None:
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
