"""How long a study still takes, judged by the pieces that this process has run."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Estimates the time left: pieces of one kind take about as long as each other."""

    def __init__(self, kinds: list[str]) -> None:
        self.num_left = {kind: kinds.count(kind) for kind in kinds}
        self.seconds: dict[str, list[float]] = {}

    def skip(self, kind: str) -> None:
        """A piece was finished before."""
        self.num_left[kind] -= 1

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Time the ``with`` block as one piece of ``kind``."""
        start = time.perf_counter()
        yield
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)
        self.num_left[kind] -= 1

    def estimate(self) -> str:
        """Words such as ``"  about 12 min left, without finetune"``; empty when nothing is known yet."""
        mean = {kind: sum(times) / len(times) for kind, times in self.seconds.items()}
        waiting = [kind for kind, num in self.num_left.items() if num > 0]
        left = sum(mean[kind] * self.num_left[kind] for kind in waiting if kind in mean)
        unknown = [kind for kind in waiting if kind not in mean]
        if not left:
            return ""
        return f"  about {duration(left)} left" + (f", without {' and '.join(unknown)}" if unknown else "")


def duration(seconds: float) -> str:
    """``"40 s"``, ``"12 min"`` or ``"3.4 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
