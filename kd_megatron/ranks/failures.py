"""What ends all ranks: the news, how the ranks' heartbeats are judged, and the error that a user reads."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self, cast

from kd_megatron.errors import EnvironmentFault, Interrupted, KdError, RankLost
from kd_megatron.ranks import stages

RESUMES = "run the same command again: it resumes from the last checkpoint (launch.sh --restarts N does so by itself)"


def lost_seconds() -> float:
    """``KD_LOST_SECONDS``: a rank that is silent for so long is lost."""
    return seconds_of("KD_LOST_SECONDS", 60.0)


def hang_seconds() -> float:
    """``KD_HANG_SECONDS``: no step or other progress for so long is a hang."""
    return seconds_of("KD_HANG_SECONDS", 600.0)


def seconds_of(name: str, default: float, least: float = 1.0) -> float:
    """Seconds as the environment variable ``name`` says. Raises `EnvironmentFault` when it says no such number."""
    given = os.environ.get(name, "")
    try:
        seconds = float(given or default)
    except ValueError:
        seconds = -1.0
    if not least <= seconds < 1e7:
        raise EnvironmentFault(
            given=f"{name}={given}", expected=f"seconds, {least:g} or more", fix=f"{name}={default:g}"
        )
    return seconds


class _Travelling:
    """A dataclass that goes to other ranks as JSON."""

    def to_bytes(self) -> str:
        """As it travels."""
        return json.dumps(asdict(cast(Any, self)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse; what was a tuple is one again."""
        fields = json.loads(data)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


@dataclass(frozen=True)
class Pulse(_Travelling):
    """One rank's heartbeat."""

    host: str
    count: int = 0  # changes with every heartbeat
    step: int = 0
    stage: str = "set-up"
    watched: bool = False  # in a stage in which no progress for long is a hang
    idle: float = 0.0  # seconds since it last got on
    where: str = ""
    waits: bool = False  # for other ranks
    ended: bool = False  # said goodbye

    @classmethod
    def of_this_process(cls, host: str, count: int = 0, ended: bool = False) -> Self:
        """What it is doing now."""
        own, at = stages.current(), stages.place()
        idle = round(own.idle_seconds(), 3)
        return cls(host, count, own.step, own.stage, own.watched, idle, at.where, at.waits, ended)

    def __str__(self) -> str:
        return f"step {self.step:,} ({self.stage})"


@dataclass(frozen=True)
class News(_Travelling):
    """Why all ranks end."""

    kind: str  # "error" of one rank, "stop" by a signal, "lost" or "hang"
    ranks: tuple[int, ...]  # whose it is
    host: str  # of the rank that tells it; for "error" and "stop" its own
    given: str
    expected: str = ""
    fix: str = RESUMES
    exit_code: int = RankLost.exit_code

    def as_error(self, rank: int) -> KdError:
        """The error with which ``rank`` ends."""
        if self.kind in ("lost", "hang") or rank in self.ranks:
            error = KdError(self.given, self.expected, self.fix)
        else:
            first, *_ = self.given.splitlines()
            told = {"error": "failed", "stop": "was told to stop"}[self.kind]
            error = KdError(f"rank {self.ranks[0]} on {self.host} {told}, so this rank ends too: {first}")
        error.exit_code = self.exit_code
        return error


def of_error(error: KdError, rank: int, host: str) -> News:
    """The news that ``rank`` raised ``error``."""
    kind = "stop" if isinstance(error, Interrupted) else "error"
    return News(kind, (rank,), host, error.given, error.expected, error.fix, error.exit_code)


def of_lost(ranks: Sequence[int], pulses: Sequence[Pulse], what: str) -> News:
    """The news that ``ranks`` are lost; ``what`` says by which sign."""
    hosts = sorted({pulses[rank].host for rank in ranks})
    last = min(ranks, key=lambda rank: pulses[rank].step)
    verb = "has" if len(ranks) == 1 else "have"
    return News(
        "lost",
        tuple(ranks),
        ", ".join(hosts),
        f"{name_ranks(ranks)} on {', '.join(hosts)} {verb} {what}, last at {pulses[last]}",
        fix=f"see whether {', '.join(hosts)} is up, then {RESUMES}",
    )


def runs_of(numbers: Iterable[int]) -> list[list[int]]:
    """``numbers`` in ascending order, those that follow each other together."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def name_ranks(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 2, 8-15``."""
    words = [f"{piece[0]}-{piece[-1]}" if len(piece) > 1 else str(piece[0]) for piece in runs_of(ranks)]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(words)}"


def judge_hang(pulses: Sequence[Pulse], hang: float) -> News | None:
    """The news of a hang when no rank can get on by itself, and some should have.

    A rank that waits for others is not to blame: while any rank works, and is not stuck itself, all is well. Legitimate
    waits (rank 0 prepares data, jobs of uneven length) are such cases.
    """
    present = {rank: pulse for rank, pulse in enumerate(pulses) if not pulse.ended}
    if not any(pulse.watched and pulse.idle >= hang for pulse in present.values()):
        return None
    working = {rank: pulse for rank, pulse in present.items() if not pulse.waits}
    if any(pulse.idle < hang or not pulse.watched for pulse in working.values()):
        return None
    if any(pulse.idle < hang for pulse in present.values() if not working):
        return None
    to_blame = working or present
    ranks = sorted(to_blame, key=lambda rank: (to_blame[rank].step, rank))
    doing = "; ".join(f"rank {rank} on {p.host} at {p}, in {p.where}" for rank, p in list(to_blame.items())[:8])
    what = "made no progress" if working else "wait for each other and made no progress"
    return News(
        "hang",
        tuple(ranks),
        to_blame[ranks[0]].host,
        f"{name_ranks(ranks)} {what} for {hang:g} s: {doing}",
        expected="a step, batch or file within KD_HANG_SECONDS",
        fix=f"look at the stacks (stacks_rank_K.txt of the run, or above); {RESUMES}",
    )


@dataclass
class Silence:
    """How long each rank has not been heard of, in time during which this process itself was awake."""

    counts: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def hear(self, rank: int, pulse: Pulse, elapsed: float) -> None:
        """Take in ``rank``'s newest heartbeat, ``elapsed`` seconds after the one before was looked for."""
        unchanged = self.counts.get(rank) == pulse.count and not pulse.ended
        self.seconds[rank] = self.seconds.get(rank, 0.0) + elapsed if unchanged else 0.0
        self.counts[rank] = pulse.count

    def longer_than(self, seconds: float) -> list[int]:
        """The ranks that have been silent for so long."""
        return [rank for rank, silent in self.seconds.items() if silent >= seconds]
