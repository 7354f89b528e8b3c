"""Is anything slower than it was? Ratios of this run beside recorded ones; absolute times are not compared.

The ratio of a row whose name begins with `PEER` is another program's speed relative to ours: that one is worse when it
rises.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.rows import Row
from kd_megatron.errors import DataError, SlowerError

PEER = "peer/"
DEFAULT_TOLERANCE = 0.1

Key = tuple[str, ...]


@dataclass(frozen=True)
class RatioChange:
    """One row's ratio, recorded and now. ``slower_by`` is the share of our relative speed that is lost."""

    row: Row
    recorded: float
    slower_by: float


def key(row: Row) -> Key:
    """What makes two rows the same measurement; the split of a batch, in brackets in a shape, does not."""
    return (row.name, row.backend, row.shape.partition(" (")[0], row.dtype, row.device, row.ratio_to)


def compare(rows: Iterable[Row], recorded: Iterable[Row]) -> list[RatioChange]:
    """Every row that is in both, in the order of ``rows``.

    Raises:
        DataError: none is in both.
    """
    before = {key(row): row.ratio for row in recorded}
    rows = list(rows)
    changes = [
        RatioChange(row, before[key(row)], _slower_by(row, before[key(row)])) for row in rows if key(row) in before
    ]
    if not changes:
        raise DataError(
            given=f"no row of this run is among the {len(before)} recorded ones",
            expected="the same names, backends, shapes, dtypes and device; here the first is "
            + (" ".join(key(rows[0])) if rows else "none"),
            fix="measure with the arguments that the recorded file was measured with",
        )
    return changes


def refuse_slower(changes: Sequence[RatioChange], tolerance: float) -> None:
    """Raise `SlowerError` where a ratio has become worse by more than ``tolerance``, a share of it."""
    slower = [change for change in changes if change.slower_by > tolerance]
    if slower:
        named = "; ".join(
            f"{change.row.name} {change.row.backend} {change.row.shape}: {change.recorded:.3g} was recorded, "
            f"now {change.row.ratio:.3g}"
            for change in slower
        )
        raise SlowerError(
            given=f"slower than recorded, relative to what ran beside it: {named}",
            expected=f"ratios that are worse by {tolerance:.0%} at most",
            fix="measure again on a quiet machine; when it stays, find the change that costs this, or record anew",
        )


def _slower_by(row: Row, recorded: float) -> float:
    now, then = (1 / row.ratio, 1 / recorded) if row.name.startswith(PEER) else (row.ratio, recorded)
    return 1 - now / then
