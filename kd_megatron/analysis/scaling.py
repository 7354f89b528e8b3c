"""A power law with a floor through losses at several amounts of text: L(D) = E + A D^-alpha (+ B N^-beta).

The form is that of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): E what no amount of text removes, D tokens
seen, N parameters. Fitted by least squares on log L, errors counting as shares of the loss. What a fit can say, and
when it is refused: docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import least_squares

Array = NDArray[numpy.float64]
Unit = Literal["points", "seeds"]  # what is resampled

FEWEST_AMOUNTS = 5  # of text: three unknowns, and two to spare
LEAST_REACH = 3.0  # most tokens / fewest: over less, any curve is a straight line
FEWEST_SIZES = 3  # of students, to fit B and beta
FEWEST_POINTS_OF_SIZES = 7  # five unknowns, and two to spare
FEWEST_SEEDS = 5  # to resample seeds
SAME_AMOUNT = 1.05  # amounts of text closer than this factor are one
NUM_DRAWS = 400
LARGEST_EXPONENT = 5.0  # a steeper curve is a step
MOST_LOG_TOKENS = 300.0  # beyond it: never
MOST_STEPS = 60  # of the optimizer; a law that the points tell takes about ten
STARTS = [(floor, alpha) for floor in (0.05, 0.5, 0.9) for alpha in (0.1, 0.4, 1.0)]  # floor: share of the lowest loss
DRAW_SEED = 20_240_619


@dataclass(frozen=True)
class Point:
    """One measured loss."""

    tokens: float
    loss: float  # nats
    seed: int
    parameters: float = 1.0
    epochs: float = 1.0  # how often the text was seen on average
    is_final: bool = True  # at the end of its run; False: on the way, under a learning rate not yet decayed


@dataclass(frozen=True)
class Refusal:
    """Why there is no fit, in a sentence that says what to do."""

    reason: str


@dataclass(frozen=True)
class Fit:
    """A fitted law. Parameters are in the order floor, log A, alpha (, log B, beta), A and B for centred logarithms."""

    parameters: Array  # [P]
    draws: Array  # [draws, P], of the bootstrap
    centre: tuple[float, float]  # of log tokens and of log parameters
    points: tuple[Point, ...]
    unit: Unit
    deviation: float  # of log L around the law

    @property
    def floor(self) -> float:
        """E, in nats."""
        return float(self.parameters[0])

    @property
    def exponent(self) -> float:
        """Alpha, the power of tokens."""
        return float(self.parameters[2])

    @property
    def coefficient(self) -> float:
        """A, in nats at one token."""
        return math.exp(float(self.parameters[1]) + self.exponent * self.centre[0])

    @property
    def token_range(self) -> tuple[float, float]:
        """Fewest and most tokens among the points."""
        tokens = [point.tokens for point in self.points]
        return min(tokens), max(tokens)

    @property
    def size_term(self) -> tuple[float, float] | None:
        """(B in nats at one parameter, beta); None where no size was fitted."""
        if len(self.parameters) < 5:
            return None
        beta = float(self.parameters[4])
        return math.exp(float(self.parameters[3]) + beta * self.centre[1]), beta

    def of_size(self, parameters: float) -> "Fit":
        """The law of text alone for students of one size, B N^-beta in its floor; as it is without such a term."""
        if self.size_term is None:
            return self
        z = math.log(parameters) - self.centre[1]
        return replace(self, parameters=_without_size(self.parameters[None], z)[0], draws=_without_size(self.draws, z))

    def interval(self, index: int) -> tuple[float, float]:
        """95 % percentile interval of one parameter over the draws."""
        low, high = numpy.percentile(self.draws[:, index], [2.5, 97.5])
        return float(low), float(high)

    def predict(self, tokens: Array, draws: bool = False) -> Array:
        """Loss at ``tokens`` [T]; [T], or [draws, T] of every draw. A law with sizes is asked for one: `of_size`."""
        self._require_one_size()
        x = numpy.log(tokens) - self.centre[0]
        thetas = self.draws if draws else self.parameters[None]
        found = thetas[:, :1] + numpy.exp(thetas[:, 1:2] - thetas[:, 2:3] * x)
        return found if draws else found[0]

    def tokens_for(self, losses: Array, draws: bool = False) -> Array:
        """Text that the law needs for ``losses`` [R, T]; infinity at or below its floor. Of one size, as `predict`.

        Args:
            losses: R is 1, or the number of draws to use when ``draws``.
            draws: whether row r is asked of draw r.
        """
        self._require_one_size()
        thetas = self.draws[: len(losses)] if draws else self.parameters[None]
        above = losses - thetas[:, :1]
        x = (thetas[:, 1:2] - numpy.log(numpy.where(above > 0, above, 1.0))) / thetas[:, 2:3]
        return numpy.where(above > 0, numpy.exp(numpy.minimum(x + self.centre[0], MOST_LOG_TOKENS)), numpy.inf)

    def _require_one_size(self) -> None:
        if self.size_term is not None:
            raise ValueError("a law with sizes says nothing of text alone: ask of_size(parameters) first")


def fit(
    points: Sequence[Point],
    with_sizes: bool = False,
    unit: Unit = "points",
    num_draws: int = NUM_DRAWS,
) -> Fit | Refusal:
    """Fit the law and its bootstrap.

    Args:
        unit: ``"points"``: residuals are resampled around the law, which takes points for independent; ``"seeds"``:
            whole seeds are resampled, for points that share a run.

    Returns:
        The fit; a refusal when the points cannot tell the law's parameters.
    """
    if reason := _why_not(points, with_sizes, unit):
        return Refusal(reason)
    x, z, y = (
        numpy.array([math.log(value) for value in values])
        for values in zip(*((point.tokens, point.parameters, point.loss) for point in points), strict=True)
    )
    centre = (float(x.mean()), float(z.mean()))
    x, z = x - centre[0], z - centre[1]
    best = min((_solve(x, z, y, start) for start in _starts(y, with_sizes)), key=lambda found: found[1])[0]
    residuals = y - _log_law(best, x, z)
    spare = len(points) - len(best)
    widening = math.sqrt(len(points) / spare) * float(stats.t.ppf(0.975, spare) / stats.norm.ppf(0.975))
    draws = _draws(best, x, z, y, residuals * widening, points, unit, num_draws)
    deviation = math.sqrt(float(residuals @ residuals) / spare)
    return Fit(_natural(best[None])[0], _natural(draws), centre, tuple(points), unit, deviation)


def num_amounts(points: Sequence[Point]) -> int:
    """How many different amounts of text there are; those within `SAME_AMOUNT` of the one before count as one."""
    tokens = sorted(point.tokens for point in points)
    return sum(1 for before, here in zip([0.0, *tokens], tokens, strict=False) if here > SAME_AMOUNT * before)


def _why_not(points: Sequence[Point], with_sizes: bool, unit: Unit) -> str | None:
    if any(not (math.isfinite(point.loss) and point.loss > 0 and point.tokens > 0) for point in points):
        return "no fit: a loss is not finite and positive, or was measured at no tokens"
    amounts, sizes, seeds = num_amounts(points), len({p.parameters for p in points}), len({p.seed for p in points})
    if amounts < FEWEST_AMOUNTS:
        return (
            f"no fit: losses at {amounts} different amounts of text, and a power law with a floor needs "
            f"{FEWEST_AMOUNTS}; run the study at more budgets, or add fractions to validation.at"
        )
    reach = max(point.tokens for point in points) / min(point.tokens for point in points)
    if reach < LEAST_REACH:
        return (
            f"no fit: the amounts of text reach over a factor of {reach:.1f}, and a law needs {LEAST_REACH:.0f}; "
            "run smaller or larger budgets, or validate earlier (validation.at)"
        )
    if with_sizes and sizes < FEWEST_SIZES:
        return f"no fit over sizes: students of {sizes} different sizes, and their term needs {FEWEST_SIZES}"
    if with_sizes and len(points) < FEWEST_POINTS_OF_SIZES:
        return (
            f"no fit over sizes: {len(points)} losses for five unknowns, and the law needs {FEWEST_POINTS_OF_SIZES}; "
            "run more seeds or budgets"
        )
    if unit == "seeds" and seeds < FEWEST_SEEDS:
        return f"no interval over seeds: {seeds} seeds, and resampling them needs {FEWEST_SEEDS}"
    if stats.linregress(*(numpy.log([getattr(p, name) for p in points]) for name in ("tokens", "loss"))).slope >= 0:
        return "no fit: the loss does not fall with more text"
    return None


def _starts(y: Array, with_sizes: bool) -> list[Array]:
    """Inner parameters (log E, log A, log alpha (, log B, log beta)) to start from."""
    lowest, spread = float(numpy.exp(y.min())), float(numpy.exp(y.mean()))
    starts = []
    for share, alpha in STARTS:
        rest = max(spread - share * lowest, 1e-3 * lowest)
        parts = [math.log(share * lowest), math.log(rest), math.log(alpha)]
        if with_sizes:
            parts = [parts[0], math.log(rest / 2), parts[2], math.log(rest / 2), parts[2]]
        starts.append(numpy.array(parts))
    return starts


def _solve(x: Array, z: Array, y: Array, start: Array) -> tuple[Array, float]:
    """(inner parameters, cost) of the least squares from ``start``."""
    upper = numpy.array([float(y.min()), numpy.inf, math.log(LARGEST_EXPONENT), numpy.inf, math.log(LARGEST_EXPONENT)])
    lower = numpy.full(5, -12.0)  # e^-12: nothing
    size = len(start)
    bounds = (lower[:size], upper[:size])
    start = numpy.clip(start, bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(
        lambda theta: _log_law(theta, x, z) - y,
        start,
        lambda theta: _gradient(theta, x, z),
        bounds=bounds,
        max_nfev=MOST_STEPS,
    )
    return found.x, float(found.cost)


def _parts(theta: Array, x: Array, z: Array) -> Array:
    """Logarithms of the law's terms, [2 or 3, num points]."""
    terms = [numpy.full_like(x, theta[0]), theta[1] - math.exp(theta[2]) * x]
    if len(theta) == 5:
        terms.append(theta[3] - math.exp(theta[4]) * z)
    return numpy.stack(terms)


def _log_law(theta: Array, x: Array, z: Array) -> Array:
    law: Array = numpy.logaddexp.reduce(_parts(theta, x, z), axis=0)
    return law


def _gradient(theta: Array, x: Array, z: Array) -> Array:
    parts = _parts(theta, x, z)
    shares = numpy.exp(parts - numpy.logaddexp.reduce(parts, axis=0))  # of the loss, by term
    columns = [shares[0], shares[1], -shares[1] * x * math.exp(theta[2])]
    if len(theta) == 5:
        columns += [shares[2], -shares[2] * z * math.exp(theta[4])]
    return numpy.stack(columns, axis=1)


def _draws(
    best: Array,
    x: Array,
    z: Array,
    y: Array,
    residuals: Array,
    points: Sequence[Point],
    unit: Unit,
    num_draws: int,
) -> Array:
    """Inner parameters of ``num_draws`` resamples.

    Residuals come widened for the unknowns that were fitted away and, as Student's t widens a normal interval, for
    their own deviation being known from few: without it, six points gave 80 % intervals in place of 95 % ones.
    """
    generator = numpy.random.default_rng(DRAW_SEED)
    law = _log_law(best, x, z)
    seeds = numpy.array([point.seed for point in points])
    groups = [numpy.flatnonzero(seeds == seed) for seed in sorted(set(seeds.tolist()))]
    found = []
    for _ in range(num_draws):
        if unit == "points":
            drawn = law + generator.choice(residuals - residuals.mean(), len(y))
            found.append(_solve(x, z, drawn, best)[0])
        else:
            chosen = numpy.concatenate([groups[i] for i in generator.integers(len(groups), size=len(groups))])
            found.append(_solve(x[chosen], z[chosen], y[chosen], best)[0])
    drawn_parameters = numpy.stack(found)
    return drawn_parameters if unit == "points" else _widened(drawn_parameters, best, len(groups))


def _widened(drawn: Array, best: Array, num_seeds: int) -> Array:
    """Inner parameters drawn by whole seeds, spread about the best fit as few seeds demand.

    A resample of n seeds has (n - 1) / n of the variance, and a normal interval takes the deviation for known:
    together, at five seeds, intervals that hold 82 % of planted laws in place of 95 %.
    """
    normal = stats.norm.ppf(0.975)
    factor = math.sqrt(num_seeds / (num_seeds - 1)) * float(stats.t.ppf(0.975, num_seeds - 1)) / float(normal)
    wide = best + factor * (drawn - best)
    for column in range(2, wide.shape[1], 2):  # logarithms of exponents
        wide[:, column] = numpy.minimum(wide[:, column], math.log(LARGEST_EXPONENT))
    return wide


def _without_size(thetas: Array, z: float) -> Array:
    """[..., (E, log A, alpha, log B, beta)] -> [..., (E + B N^-beta, log A, alpha)] at centred log N ``z``."""
    found = thetas[:, :3].copy()
    found[:, 0] += numpy.exp(thetas[:, 3] - thetas[:, 4] * z)
    return found


def _natural(inner: Array) -> Array:
    """[..., (log E, log A, log alpha, ...)] -> [..., (E, log A, alpha, ...)]."""
    found = inner.copy()
    for column in (0, 2, 4)[: (inner.shape[1] + 1) // 2]:
        found[:, column] = numpy.exp(inner[:, column])
    return found
