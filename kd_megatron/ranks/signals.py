"""Requests to stop: SIGTERM, SIGUSR1 (preemption notice) and SIGINT (Ctrl-C).

Training asks for them once per step and saves a checkpoint before it ends (`stop_requests`). Anywhere else they end the
process at once, as Ctrl-C does: all work outside training goes on from its last finished part. A main thread inside a
call that does not return, such as a collective, is not waited for. After the first signal others change nothing.
"""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

from kd_megatron.errors import Interrupted
from kd_megatron.ranks.process import say_error

EXIT_CTRL_C = 130  # 128 + SIGINT, as shells have it
HARD_EXIT_SECONDS = 10.0
_CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by SIGTERM or SIGUSR1 outside training. As Ctrl-C, it passes ``except Exception``."""

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name

    def as_error(self) -> Interrupted:
        """The error that the user reads."""
        return Interrupted(
            given=f"stopped by {self.signal_name}",
            fix="run the same command again: it goes on from the last checkpoint or finished part",
        )


class StopRequest:
    """Set by a signal; the loop asks it once per step."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal; a second Ctrl-C stops at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name


class _Process:
    """How this process takes signals now."""

    def __init__(self) -> None:
        self.installed = False
        self.request: StopRequest | None = None  # of the training that runs
        self.asked: str | None = None  # the signal that came outside training; also while the main thread is busy
        self.stopped = False  # the main thread has heard of it

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """End the main thread's work, once; Ctrl-C each time."""
        self.asked = self.asked or signal.Signals(number).name
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.stopped:
            self.stopped = True
            raise Stopped(self.asked)


_process = _Process()


def install() -> None:
    """Take signals as above from now on. Under a launcher, its death counts as SIGTERM. Main thread only."""
    for number in _CAUGHT:
        signal.signal(number, _process.handle)
    ours, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not ours
    threading.Thread(target=_listen, args=(ours, woken), name="signals", daemon=True).start()
    _process.installed = True
    if "LOCAL_RANK" in os.environ:  # of torchrun and deepspeed, which kill -9 would leave without their workers
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def asked_to_stop() -> str | None:
    """The name of the signal that ends this process, None while there is none or training is to answer it."""
    return _process.asked


def stop_here() -> None:
    """Stop this process as SIGTERM does, since another rank was told to; from any thread."""
    if _process.installed and not _process.stopped:
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Leave the signals to the ``with`` block, which asks for them. Main thread only.

    Raises:
        Stopped: at the block's end, when a signal came that the block did not answer.
    """
    request = StopRequest()
    former = {number: signal.signal(number, request.handle) for number in _CAUGHT}
    _process.request = request
    answered = True
    try:
        yield request
        answered = not request
    finally:
        _process.stopped = _process.stopped or bool(request)  # from here to the exit, more signals change nothing
        _process.request = None
        for number, handler in former.items():
            signal.signal(number, handler)
    if not answered and request.signal is not None:
        _process.asked = request.signal
        raise Stopped(request.signal)


def _listen(ours: socket.socket, woken: socket.socket) -> None:
    """Hear of signals at once, also while the main thread is inside a call that does not return."""
    while True:
        for number in ours.recv(64):
            if number not in _CAUGHT or _process.request is not None or _process.stopped:
                continue
            _process.asked = signal.Signals(number).name
            if number != signal.SIGINT:
                threading.Thread(target=_hard_exit, daemon=True).start()


def _hard_exit() -> None:
    """The last resort for a main thread that does not hear."""
    time.sleep(HARD_EXIT_SECONDS)
    if not _process.stopped and _process.asked is not None:
        say_error(str(Stopped(_process.asked).as_error()))
        os._exit(Interrupted.exit_code)
