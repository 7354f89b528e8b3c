"""What a check of a device says and keeps: gpu_check.txt line by line, gpu_check.json after every part."""

import json
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.kernels import suite
from benchmarks.kernels.correctness import Check
from benchmarks.rows import Row, as_json
from kd_megatron.files import atomic
from kd_megatron.machine import facts

Item = TypeVar("Item")
PACKAGES = ("torch", "triton", "numpy", "deepspeed", "transformers", "megatron-core")


EXPLAINED = {
    "check": "each line: a kernel, its backend, and its worst tensor against float64; over the allowed error it is red",
    "speed": "forward and backward in bf16; speed is eager's time over the row's, 'x bound' its time over the least "
    "that an H200 needs for products, exponentials and bytes",
    "long": "length 8192: right, and twice the memory of half the length, not four times",
    "tune": "the fastest block sizes of each Triton kernel; kd_megatron/kernels/*/triton.py has those that are shipped",
}


class Report:
    """Everything that one run finds, and the time it has.

    Args:
        directory: to write to; made when it is not there.
        minutes: for all of it. What the time does not allow is skipped, and said to be.
    """

    def __init__(self, directory: Path, minutes: float) -> None:
        self.directory = directory
        self.start = time.perf_counter()
        self.end = self.start + 60 * minutes
        self.checks: list[Check] = []
        self.rows: list[Row] = []
        self.left_out: list[suite.LeftOut] = []
        self.found: dict[str, list[Any]] = defaultdict(list)  # by part: what is neither a check nor a row
        self.red: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)
        self.text = (directory / "gpu_check.txt").open("w", encoding="utf-8")
        self.facts = facts.facts(PACKAGES)
        versions = ", ".join(f"{name} {version}" for name, version in self.facts["versions"].items())
        self.say(f"{self.facts['hardware']['device']}; {versions}; commit {self.facts['commit'][:12]}")
        if self.facts["commit"] == facts.NO_COMMIT:
            self.say("no commit is known: set KD_COMMIT to what 'git rev-parse HEAD' says where the copy was made")

    def run(self, parts: Mapping[str, Callable[[], object]]) -> None:
        """Each part in turn, and what it found on the disk before the next begins."""
        for name, part in parts.items():
            self.say(f"\n== {name} ==")
            if name in EXPLAINED:
                self.say(f"   {EXPLAINED[name]}")
            part()
            self.write()

    def finish(self) -> int:
        """Say what is red; the exit code."""
        for line in self.red:
            self.say(f"RED {line}")
        self.say(f"{len(self.red)} red, {len(self.found['skipped'])} skipped, {time.perf_counter() - self.start:.0f} s")
        self.write()
        self.text.close()
        return 1 if self.red else 0

    def moment(self, fraction: float) -> float:
        """When, by `time.perf_counter`, this fraction of the time that is left now will be gone."""
        now = time.perf_counter()
        return now + fraction * max(0.0, self.end - now)

    def while_time_lasts(self, part: str, items: Iterable[Item], end: float | None = None) -> Iterator[Item]:
        """The items, until ``end`` (None: that of the whole run): the rest is skipped, and said to be."""
        for item in items:
            if time.perf_counter() > (self.end if end is None else end):
                self.skip(part, f"time is up: the rest of '{part}' is skipped")
                return
            yield item

    def skip(self, part: str, why: str) -> None:
        """Note that a part, or the rest of it, is skipped."""
        self.found["skipped"].append(part)
        self.say(why)

    def guarded(self, name: str, function: Callable[..., Item], *arguments: Any) -> Item | None:
        """What ``function`` returns; None when it fails, which is red."""
        try:
            return function(*arguments)
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            self.red.append(f"{name}: {type(error).__name__}: {first_line}")
            self.say(f"FAILED {self.red[-1]}")
            traceback.print_exc(file=self.text)
            return None

    def say(self, line: str) -> None:
        """One line, on stdout and in the text file."""
        print(line, flush=True)
        print(line, file=self.text, flush=True)

    def write(self) -> None:
        """gpu_check.json, all or nothing."""
        record = as_json(self.rows, self.facts) | {
            "checks": [asdict(check) | {"passed": check.passed} for check in self.checks],
            "left_out": [str(reason) for reason in self.left_out],
            "red": self.red,
            **self.found,
        }
        with atomic.new_file(self.directory / "gpu_check.json") as aside:
            aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
