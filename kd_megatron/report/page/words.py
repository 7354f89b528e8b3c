"""Numbers as a reader sees them: units, few digits, a real minus sign, and a dash where there is nothing."""

from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console.units import NOTHING, signed, signless


def score(value: Estimate | None) -> str:
    """Mean and half interval in points: ``"71.2 ± 1.3"``; the mean alone when there is one seed."""
    return _plus_minus(value, 100, 1)


def loss(value: Estimate | None) -> str:
    """Mean and half interval in nats: ``"2.134 ± 0.012"``."""
    return _plus_minus(value, 1, 3)


def score_difference(value: Estimate | None) -> str:
    """``"+1.2 [−0.3, +2.7]"`` in points; ``"+1.2 (1 seed)"`` without an interval."""
    return difference(value, 100, 1)


def loss_difference(value: Estimate | None) -> str:
    """The same in nats."""
    return difference(value, 1, 3)


def difference(value: Estimate | None, scale: float, digits: int) -> str:
    """A signed difference with its interval."""
    if value is None:
        return NOTHING
    return f"{signed(scale * value.mean, digits)} {ends(value, scale, digits) or '(1 seed)'}"


def ends(value: Estimate, scale: float, digits: int) -> str | None:
    """The interval of a difference, ``"[−0.3, +2.7]"``; None without one."""
    if value.low is None or value.high is None:
        return None
    return f"[{signed(scale * value.low, digits)}, {signed(scale * value.high, digits)}]"


def _plus_minus(value: Estimate | None, scale: float, digits: int) -> str:
    if value is None:
        return NOTHING
    mean = signless(f"{scale * value.mean:.{digits}f}")
    return mean if value.half_width is None else f"{mean} ± {scale * value.half_width:.{digits}f}"
