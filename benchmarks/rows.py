"""The rows of every benchmark of this repository: figures of one backend at one shape, beside another's."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """Figures of one backend (or arm); times are of forward and backward (or of one optimizer step)."""

    name: str
    backend: str
    shape: str
    dtype: str
    device: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    peak_mib: float | None  # above the inputs; None where it cannot be told apart
    tokens_per_second: float
    ratio: float  # speed relative to `ratio_to`: the median over the rounds of its time by ours
    ratio_to: str
    mfu: float | None = None  # model FLOPs as a share of the data sheet's; None where there is no data sheet


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` of ``values`` lie, interpolated."""
    return torch.tensor(values, dtype=torch.float64).quantile(fraction).item()


def median_ratio(reference_seconds: Sequence[float], seconds: Sequence[float]) -> float:
    """The median of the pairwise ratios: what both saw in one round, such as a busy machine, cancels."""
    return percentile([theirs / ours for theirs, ours in zip(reference_seconds, seconds, strict=True)], 0.5)


def timing_figures(
    seconds: Sequence[float],
    reference_seconds: Sequence[float],
    num_tokens: int,
    reference_tokens: int | None = None,
) -> dict[str, float]:
    """The figures of a `Row` that follow from the seconds of its rounds and of the reference's, in the same order.

    ``reference_tokens`` are those of the reference's step, where it is of another size: speed is in tokens.
    """
    share = num_tokens / (reference_tokens or num_tokens)
    p20, p50, p80 = (percentile(seconds, fraction) for fraction in (0.2, 0.5, 0.8))
    return {
        "p20_ms": _rounded(1000 * p20),
        "p50_ms": _rounded(1000 * p50),
        "p80_ms": _rounded(1000 * p80),
        "tokens_per_second": round(num_tokens / p50, 1),
        "ratio": _rounded(median_ratio([share * theirs for theirs in reference_seconds], seconds)),
    }


def _rounded(value: float) -> float:
    """Four digits: more than any timing holds."""
    return float(f"{value:.4g}")


def as_json(rows: Iterable[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """What ``--json`` writes: when, on what, and the rows."""
    return {"date": time.strftime("%Y-%m-%d"), **facts, "rows": [asdict(row) for row in rows]}


def peak_share(row: Row, rows: Iterable[Row]) -> float | None:
    """The row's peak memory as a share of that of ``row.ratio_to`` at the same shape; None where there is none."""
    same = (row.name, row.shape, row.dtype, row.device, row.ratio_to)
    for other in rows:
        if (other.name, other.shape, other.dtype, other.device, other.backend) == same:
            return row.peak_mib / other.peak_mib if row.peak_mib is not None and other.peak_mib else None
    return None


COLUMNS = ("kernel", "shape", "dtype", "backend", "p50 ms", "p20 to p80", "speed", "peak MiB", "of peak", "tokens/s")
NUM_PLACE_COLUMNS = 3  # those that say what was measured; the backend and its figures follow


def columns(rows: Iterable[Row]) -> tuple[str, ...]:
    """`COLUMNS`, and one for MFU where any row has it."""
    return (*COLUMNS, "MFU") if any(row.mfu is not None for row in rows) else COLUMNS


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """The row as the texts of `columns`."""
    share = peak_share(row, rows)
    texts = [
        row.name,
        row.shape,
        row.dtype,
        row.backend,
        _figure(row.p50_ms),
        f"{_figure(row.p20_ms)} to {_figure(row.p80_ms)}",
        f"{row.ratio:.2f}x",
        "" if row.peak_mib is None else _figure(row.peak_mib),
        "" if share is None else f"{share:.3f}",
        f"{row.tokens_per_second:,.0f}",
        "" if row.mfu is None else f"{row.mfu:.1%}",
    ]
    return texts[: len(columns(rows))]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_markdown(rows: Sequence[Row]) -> str:
    """A table of all rows, and what its ratios are relative to."""
    references = sorted({row.ratio_to for row in rows})
    note = f"Speed and share of peak memory are relative to {', '.join(references)}."
    return markdown_table(columns(rows), NUM_PLACE_COLUMNS + 1, [cells(row, rows) for row in rows], note)


def markdown_table(heads: Sequence[str], num_text_columns: int, lines: Sequence[Sequence[str]], note: str) -> str:
    """A table whose first columns are words and whose others are figures, and a note under it."""
    rules = ["---"] * num_text_columns + ["---:"] * (len(heads) - num_text_columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *lines)) + f"\n\n{note}\n"
