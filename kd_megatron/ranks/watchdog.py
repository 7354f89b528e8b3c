"""Ends this process, with one message that says why, when it cannot go on: a rank was lost, one hangs, one failed.

The main thread may be inside a collective that never returns, so a thread of its own looks on and, where the main
thread does not end by itself, ends the process. Every file of ours is written whole or not at all, so that this is as
safe as ``kill -9``. Its pieces: `stages` (what a rank does), `heartbeat` (what it tells and hears), `failures`.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from dataclasses import replace
from typing import NoReturn

from kd_megatron.errors import KdError
from kd_megatron.ranks import failures, signals, stages
from kd_megatron.ranks.failures import News, Pulse
from kd_megatron.ranks.heartbeat import Heart
from kd_megatron.ranks.process import say_error

TICK_SECONDS = 0.2
PATIENCE_SECONDS = 3.0  # in which a main thread that fails as the others do ends by itself
GOODBYE_SECONDS = 10.0  # in which the ranks hear why they end
PEER_SECONDS = 8.0  # in which the rank is found whose end broke a collective
_A_PEER_IS_GONE = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "Socket", "store")


class Watchdog:
    """Looks on from its own thread until `stop`.

    Args:
        heart: None when it is alone; it is then watched for hangs only.
    """

    def __init__(self, rank: int, heart: Heart | None) -> None:
        self.rank, self.heart = rank, heart
        self.hang_seconds = failures.hang_seconds()
        if heart is not None:
            heart.on_news = self._dump_stacks
        self._ending, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def last_words(self, error: BaseException) -> BaseException:
        """Tell the other ranks why this one ends; returns the error with which it should.

        A collective that failed since a peer is gone becomes that peer's news. Sets `KdError.said`.
        """
        self._ending.set()
        heart = self.heart
        if heart is None:
            return error
        mine = self._news_of(error, heart)
        told = heart.tell(mine, GOODBYE_SECONDS)
        if _peer_is_gone(error) or isinstance(error, signals.Stopped):
            error = told.as_error(self.rank)
        if isinstance(error, KdError):
            error.said = told.given == mine.given and not heart.first_to_say
        return error

    def stop(self, in_good_order: bool) -> None:
        """Say goodbye and end the threads."""
        self._ending.set()
        if self.heart is not None:
            self.heart.say_goodbye(math.inf if in_good_order else GOODBYE_SECONDS)
            self.heart.stop()
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def _news_of(self, error: BaseException, heart: Heart) -> News:
        if _peer_is_gone(error):
            return heart.who_is_gone(PEER_SECONDS)
        if isinstance(error, KdError):
            return failures.of_error(error, self.rank, heart.host)
        if isinstance(error, signals.Stopped):
            return failures.of_error(error.as_error(), self.rank, heart.host)
        if isinstance(error, KeyboardInterrupt):
            return News("stop", (self.rank,), heart.host, "interrupted by Ctrl-C", exit_code=signals.EXIT_CTRL_C)
        if isinstance(error, BrokenPipeError):
            return News("stop", (self.rank,), heart.host, "the reader of its output closed the pipe", exit_code=141)
        return News("error", (self.rank,), heart.host, f"{type(error).__name__}: {error}", exit_code=1)

    def _run(self) -> None:
        unreachable, exchanges, last = 0.0, -1, time.monotonic()
        while not self._stopped.wait(TICK_SECONDS):
            now = time.monotonic()
            heart = self.heart
            if heart is None:
                if found := self._own_hang():
                    self._dump_stacks(found)
                    self._end_if(found)
                continue
            unreachable += min(now - last, 2 * TICK_SECONDS)  # time in which this process slept is not the store's
            last = now
            if exchanges != heart.num_exchanges:
                unreachable, exchanges = 0.0, heart.num_exchanges
            if unreachable > heart.lost_seconds and heart.news is None and self.rank != 0:
                what = f"not been reached for {heart.lost_seconds:g} s"
                heart.news = failures.of_lost([0], heart.pulses, what)
            if (name := signals.asked_to_stop()) and not self._ending.is_set():
                heart.announce(failures.of_error(signals.Stopped(name).as_error(), self.rank, heart.host))
            self._end_if(heart.news)

    def _own_hang(self) -> News | None:
        return failures.judge_hang([replace(Pulse.of_this_process("this machine"), waits=False)], self.hang_seconds)

    def _end_if(self, found: News | None) -> None:
        """End the process with ``found``, unless the main thread does so by itself in time."""
        if found is None or self._ending.is_set():
            return
        if found.kind == "stop" and self.rank not in found.ranks:
            signals.stop_here()
        if found.kind in ("error", "stop") and self._ending.wait(PATIENCE_SECONDS):
            return
        error = found.as_error(self.rank)
        heart = self.heart
        if heart is None or heart.first_to_say:
            say_error(str(error))
        if heart is not None and not (found.kind == "lost" and 0 in found.ranks):  # who keeps the store
            heart.say_goodbye(GOODBYE_SECONDS)
        end_at_once(error.exit_code)

    def _dump_stacks(self, found: News) -> None:
        """Stacks of all threads at a hang, to the run's directory and, of a rank that is to blame, to stderr."""
        if found.kind != "hang":
            return
        directory = stages.current().directory
        with contextlib.suppress(OSError):
            if directory is not None:
                with (directory / f"stacks_rank_{self.rank}.txt").open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
        if self.rank in found.ranks or directory is None:
            with contextlib.suppress(OSError):
                faulthandler.dump_traceback(2, all_threads=True)


_watchdog: Watchdog | None = None


def start(rank: int, heart: Heart | None) -> None:
    """Watch this process until `stop`."""
    global _watchdog
    stop()
    _watchdog = Watchdog(rank, heart)


def stop(in_good_order: bool = True) -> None:
    """End the watch; the other ranks hear that this one ends in good order, or know why it does not."""
    global _watchdog
    watchdog, _watchdog = _watchdog, None
    if watchdog is not None:
        watchdog.stop(in_good_order)


def last_words(error: BaseException) -> BaseException:
    """As `Watchdog.last_words`; ``error`` itself where nobody watches."""
    return _watchdog.last_words(error) if _watchdog is not None else error


def end_at_once(code: int) -> NoReturn:
    """End the process without its main thread, which may never return from where it is."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _peer_is_gone(error: BaseException) -> bool:
    """Whether ``error`` is a collective's, or the store's, because a rank at its other end is gone or silent."""
    from torch import distributed as torch_dist

    if isinstance(error, torch_dist.DistError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in _A_PEER_IS_GONE)
