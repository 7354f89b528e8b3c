"""Runs the pieces of a study, one after another on all ranks, and tells what came of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_megatron.console import logs
from kd_megatron.errors import NonFiniteError, disk_full_is_clear
from kd_megatron.ranks import dist, stages
from kd_megatron.study.clock import Clock
from kd_megatron.study.piece import Piece
from kd_megatron.study.taking import Taker, last

POLL_SECONDS = 2.0  # between two looks at what other processes have finished

Report = Callable[[Path], Any]


def run_and_report(work: list[Piece], directory: Path, report: Report) -> None:
    """`run_pieces`, then ``report`` on rank 0, whatever diverged. Collective. Raises `NonFiniteError` at the end."""
    diverged = run_pieces(work, directory)
    if dist.is_main():
        with last(directory):
            report(directory)
    dist.barrier()
    raise_diverged(diverged)


def run_pieces(work: list[Piece], directory: Path) -> dict[str, NonFiniteError]:
    """Run what is not finished of ``work`` and no other process is at, in its order, until all is finished. Collective.

    A student that diverges is given up with the rest of its pieces, and the others go on: a run is a function of its
    recipe, so that it would diverge again, and one arm's fault would keep all others from being compared.

    Returns:
        The students that diverged in this process, each with its error.
    """
    clock, taker = Clock([piece.kind for piece in work]), Taker(work, directory)
    diverged: dict[str, NonFiniteError] = {}
    num_left, is_idle = len(work), False
    while num_left:
        taken = dist.on_main(lambda: taker.take(diverged))
        if taken is None:
            if not is_idle:
                logs.say("[dim]waiting for what other processes of this study are at[/dim]")
            is_idle = True
            time.sleep(POLL_SECONDS)
            stages.beat()
            continue
        index, what = taken
        num_left, is_idle, piece = num_left - 1, False, work[index]
        head = rf"\[{index + 1}/{len(work)}] {piece.label}"  # the backslash: rich would read [1/8] as markup
        if what != "run":
            clock.skip(piece.kind)
            why = "finished before" if what == "finished" else f"left out, {piece.of} diverged"
            logs.say(f"[dim]{head}: {why}[/dim]")
            continue
        logs.say(f"[bold]{head}[/bold]{clock.estimate()}")
        try:
            with clock.measure(piece.kind), disk_full_is_clear(directory):
                piece.run()
        except NonFiniteError as error:  # on all ranks
            if piece.of is None:
                raise
            clock.skip(piece.kind)
            diverged[piece.of] = error
            logs.warn(f"{piece.of} is given up, the others go on: {error.given}")
        finally:
            taker.release()
    return diverged


def raise_diverged(diverged: dict[str, NonFiniteError]) -> None:
    """Raise what one student, or several, ended with, after all the others are done."""
    if diverged:
        raise NonFiniteError(
            given="; ".join(f"{name} diverged: {error.given}" for name, error in diverged.items()),
            expected="students that stay finite; all others are done, and the report names those that are missing",
            fix="give their arms a smaller learning rate, alike in all arms or by tuning, and use --redo",
        )
