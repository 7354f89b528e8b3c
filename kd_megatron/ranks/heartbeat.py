"""One thread per rank that tells the others it lives, and hears from them, through a connection of its own.

Rank 0, beside whose process the store usually runs, hears all ranks and judges who is lost or hangs; the others hear
rank 0 and its news. So each beat costs three small messages, whatever the number of ranks.
"""

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as torch_dist

from kd_megatron.ranks import failures as news
from kd_megatron.ranks.failures import News, Pulse, Silence

NEWS, SAID = "kd/news", "kd/said"
CONNECT_SECONDS = 3.0


def pulse_key(rank: int) -> str:
    """Where ``rank``'s heartbeat is kept."""
    return f"kd/pulse/{rank}"


class Heart:
    """Beats until `stop`. The store must hold every rank's first pulse and empty news already.

    Args:
        pulses: every rank's first pulse.
        lost_seconds: how long a silent rank is waited for.
        hang_seconds: how long a rank may make no progress.
    """

    def __init__(
        self, rank: int, pulses: list[Pulse], address: tuple[str, int], lost_seconds: float, hang_seconds: float
    ) -> None:
        self.rank, self.address = rank, address
        self.lost_seconds, self.hang_seconds = lost_seconds, hang_seconds
        self.interval = min(1.0, lost_seconds / 10.0)
        self.pulses = pulses  # the newest of each rank that this one hears
        self.news: News | None = None
        self.on_news: Callable[[News], None] = lambda news: None  # called before rank 0 may take away the store
        self.first_to_say = True  # of the ranks on this host, the news
        self.num_exchanges, self.exchanged_at = 0, time.monotonic()  # both grow while the store answers
        self._silence = Silence()
        self._hear_all = rank == 0
        self._ended = self._told_end = False
        self._outgoing: News | None = None
        self._wake, self._stopping = threading.Event(), False
        self._store: torch_dist.Store | None = None
        self._is_refused = False  # whether the last attempt at the store failed; the first may take long
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def host(self) -> str:
        """Of this rank."""
        return self.pulses[self.rank].host

    def announce(self, found: News) -> None:
        """End all ranks with ``found``, unless other news were first; does not wait."""
        self._outgoing = self._outgoing or found
        self._wake.set()

    def tell(self, found: News, seconds: float) -> News:
        """As `announce`; waits ``seconds`` at most and returns the news that hold."""
        self.announce(found)
        self._until(lambda: self.news is not None or self._is_cut_off(), seconds)
        self.news = self.news or found  # without a store, each rank for itself
        return self.news

    def who_is_gone(self, seconds: float) -> News:
        """The news when a collective failed: waits up to ``seconds`` for somebody to tell, or to fall silent."""
        self._hear_all = True
        quiet, began = max(2.5, 3 * self.interval), time.monotonic()

        def known() -> bool:
            return self.news is not None or bool(self._silence.longer_than(quiet))

        while not known() and time.monotonic() - began < seconds:
            time.sleep(0.05)
            if time.monotonic() - max(began, self.exchanged_at) > quiet:
                return news.of_lost([0], self.pulses, "ended without a goodbye")
        if self.news is not None:
            return self.news
        gone = self._silence.longer_than(quiet / 2)
        if gone:
            return news.of_lost(gone, self.pulses, "ended without a goodbye")
        return News("lost", (), self.host, "the connection to another rank was lost", "all ranks to stay connected")

    def say_goodbye(self, seconds: float) -> None:
        """Tell that this rank ends in good order. Rank 0 keeps the store until all others have ended or are silent."""
        self._ended = True
        self._until(lambda: self._told_end or self._is_cut_off(), min(seconds, 2 * CONNECT_SECONDS))
        if self.rank == 0:
            self._until(self._others_have_ended, seconds)

    def _others_have_ended(self) -> bool:
        gone = {*self._silence.longer_than(self.lost_seconds)}
        if self.news is not None and self.news.kind == "lost":
            gone |= {*self.news.ranks}
        return all(self.pulses[rank].ended or rank in gone for rank in range(1, len(self.pulses)))

    def _is_cut_off(self) -> bool:
        return self._is_refused and time.monotonic() - self.exchanged_at > CONNECT_SECONDS

    def stop(self) -> None:
        """End the thread; one that waits for the store ends with the process."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for ``condition()``, the thread beating fast."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline and self._thread.is_alive():
            self._wake.set()
            time.sleep(0.02)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping:
            self._wake.wait(self.interval)
            self._wake.clear()
            now = time.monotonic()
            try:
                store = self._store or self._connect()
                self._exchange(store, elapsed=min(now - last, 2 * self.interval))
                self._store, self._is_refused = store, False
            except (OSError, RuntimeError):  # torch's DistError is a RuntimeError
                self._store, self._is_refused = None, True
            last = now

    def _connect(self) -> torch_dist.Store:
        """A new client. A plain connection goes first, since torch's own tries for long and complains loudly."""
        socket.create_connection(self.address, timeout=CONNECT_SECONDS).close()
        patience = timedelta(seconds=self.lost_seconds)
        return torch_dist.TCPStore(*self.address, is_master=False, timeout=patience, wait_for_workers=False)

    def _exchange(self, store: torch_dist.Store, elapsed: float) -> None:
        """Tell this rank's pulse, and hear the others and the news."""
        ends = self._ended or self.news is not None
        mine = self._own_pulse(ends)
        store.set(pulse_key(self.rank), mine.to_bytes())
        ranks = range(len(self.pulses)) if self._hear_all else [0]
        held, *found = store.multi_get([NEWS, *map(pulse_key, ranks)])
        for rank, data in zip(ranks, found, strict=True):
            self.pulses[rank] = Pulse.from_bytes(data)
            if rank != self.rank:
                self._silence.hear(rank, self.pulses[rank], elapsed)
        held = held or self._tell(store)
        if held and self.news is None:
            self.first_to_say = store.add(f"{SAID}/{self.host}", 1) == 1
            heard = News.from_bytes(held)
            self.on_news(heard)
            self.news = heard
            store.set(pulse_key(self.rank), self._own_pulse(ended=True).to_bytes())
        self._told_end = self._told_end or ends
        self.num_exchanges, self.exchanged_at = self.num_exchanges + 1, time.monotonic()

    def _own_pulse(self, ended: bool) -> Pulse:
        return Pulse.of_this_process(self.host, self.num_exchanges + 1, ended)

    def _tell(self, store: torch_dist.Store) -> bytes:
        """Publish what this rank has to tell, unless another one was first; returns the news that hold, if any."""
        found = self._outgoing or self._judge()
        return bytes(store.compare_set(NEWS, "", found.to_bytes())) if found else b""

    def _judge(self) -> News | None:
        if self._ended:
            return None
        if self._silence.longer_than(self.lost_seconds):
            lost = self._silence.longer_than(self.lost_seconds / 2)
            return news.of_lost(lost, self.pulses, f"not been heard of for {self.lost_seconds:g} s")
        return news.judge_hang(self.pulses, self.hang_seconds) if self.rank == 0 else None
