"""The arms of one place (device_step_sizes.py), built by every lever, checked, and timed in turn."""

import gc
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.gpu import profiling
from benchmarks.gpu.device_step_sizes import (
    ALLOWED,
    COMPILED,
    EXPECTED_FP8,
    LEVERS,
    OURS,
    TARGETS,
    WHOLE,
    StepSetting,
    StepSizes,
    flop_bound,
    variant,
)
from benchmarks.gpu.report import Report
from benchmarks.kernels.correctness import Check
from benchmarks.rows import Row, cells
from benchmarks.steps import throughput
from benchmarks.steps.variants import TimedVariant
from benchmarks.timing import time_round
from kd_megatron.recipe import StudyRecipe

SCRATCH = "scratch"
FEWEST_ROUNDS = 3
SPLITS = (1, 2, 4, 8)  # of the batch into micro-batches, tried in turn while memory runs out
Losses = list[dict[str, float]]  # of the first steps: the mean of each term


class PlaceSteps:
    """All that is built at one place; it is closed as a context.

    Args:
        sizes: how all is measured.
        place: what is measured.
        report: takes what is found.
        study: `device_step_sizes.recipe` with shards that are there.
        teacher: its directory.
        directory: for caches and runs.
    """

    def __init__(
        self,
        sizes: StepSizes,
        place: StepSetting,
        report: Report,
        study: StudyRecipe,
        teacher: str | None,
        directory: Path,
    ) -> None:
        self.sizes, self.place, self.report = sizes, place, report
        self.study, self.teacher, self.directory = study, teacher, directory
        self.runs: dict[str, TimedVariant] = {}  # green ones, by `throughput.key`
        self.references: dict[str, Losses] = {}  # by arm, those of both models whole
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.runs.clear()
        self._closing.close()

    def build(self, end: float) -> None:
        """Build and check every arm by every lever, as far as the time goes."""
        jobs = [
            (arm, lever)
            for lever in self.place.levers
            for arm in self.study.arms
            if arm != SCRATCH or not LEVERS[lever].is_for_teachers
        ]
        for arm, lever in self.report.while_time_lasts(f"levers at {self.place}", jobs, end):
            self.report.guarded(f"{arm}, {lever}, {self.place}", self._build, arm, lever)
            free_memory()

    def _build(self, arm: str, lever: str) -> None:
        start, name = time.perf_counter(), f"{arm}, {lever}, {self.place}"
        found = self._within_memory(arm, lever, name)
        if found is None:
            self.report.found["out_of_memory"].append(name)
            return
        run, losses = found
        if lever == WHOLE:
            self.references[arm] = losses
        if not self._agrees(arm, lever, losses):
            run.close()
            return
        self.runs[run.variant.key] = run
        self._closing.callback(run.close)
        self.report.say(f"{name}: {time.perf_counter() - start:.1f} s; losses {_in_words(losses)}")

    def _within_memory(self, arm: str, lever: str, name: str) -> tuple[TimedVariant, Losses] | None:
        """The run with the fewest micro-batches that fit, and the losses of its first steps; None if none fit."""
        for split in (split for split in SPLITS if self.place.batch_size % split == 0):
            try:
                return self._first_steps(arm, lever, split)
            except torch.OutOfMemoryError:
                self.report.say(f"{name}: out of memory with the batch in {split}")
            free_memory()
        return None

    def _first_steps(self, arm: str, lever: str, split: int) -> tuple[TimedVariant, Losses]:
        """The run and the losses of its first steps; it is closed when one of them fails."""
        own = self.directory / f"{arm}-{list(LEVERS).index(lever)}-{split}"
        asked = variant(self.study, arm, lever, own / "cache", self.place.batch_size // split)
        run = TimedVariant(asked, own / "run", None if arm == SCRATCH else self.teacher)
        try:
            losses = [run.losses_of_a_step() for _ in range(self.sizes.num_checked_steps)]
            run.peak_mib = run.measure_peak()
        except BaseException:
            run.close()
            raise
        return run, losses

    def _agrees(self, arm: str, lever: str, losses: Losses) -> bool:
        """Compare each term with whole models and report it; nothing is compared where that failed, which is red."""
        checks = [self._check(arm, lever, losses, term) for term in losses[0] if arm in self.references]
        if LEVERS[lever].fp8_teacher:
            self._say_differences(arm, lever, checks)
            return True
        self.report.checks += checks
        red = [check for check in checks if not check.passed]
        for check in red:
            theirs = _in_words(self.references[arm])
            self.report.red.append(
                f"{arm}, {lever}, {self.place}: {check.tensor} is off by {check.error:.1e} of itself, allowed "
                f"{check.allowed:.1e}; losses {_in_words(losses)}, not {theirs}"
            )
        return not red

    def _say_differences(self, arm: str, lever: str, checks: list[Check]) -> None:
        """Of an FP8 teacher: no fault, but to be known."""
        for check in checks:
            verdict = "as expected" if check.passed else "MORE THAN EXPECTED"
            line = (
                f"{arm}, {lever}, {self.place}: {check.tensor} differs by {check.error:.1%} of itself from a bf16 "
                f"teacher's, {EXPECTED_FP8:.0%} expected at most: {verdict}"
            )
            self.report.say(line)
            self.report.found["fp8_differences"].append(
                asdict(check) | {"passed": check.passed, "place": str(self.place), "said": line}
            )

    def _check(self, arm: str, lever: str, losses: Losses, term: str) -> Check:
        pairs = [(ours[term], theirs[term]) for ours, theirs in zip(losses, self.references[arm], strict=True)]
        differences = [(ours - theirs) / abs(theirs) for ours, theirs in pairs]
        # Of a cached teacher the likeliest tokens are known: the divergence from them is one from below.
        from_below = LEVERS[lever].cached_teacher and term == "kd"
        return Check(
            name=f"steps/{arm}",
            backend=lever,
            shape=str(self.place),
            dtype=self.sizes.precision,
            tensor=term,
            error=max(0.0 if from_below and each < 0.0 else abs(each) for each in differences),
            allowed=EXPECTED_FP8 if LEVERS[lever].fp8_teacher else ALLOWED,
        )

    def time(self, end: float) -> None:
        """Time in turn what is green, in `FEWEST_ROUNDS` rounds at least, and report it."""
        preferred = [f"steps/{SCRATCH} {lever}" for lever in (COMPILED, OURS, WHOLE)]
        reference = next((key for key in preferred if key in self.runs), None)
        if reference is None:
            self.report.skip(f"timing at {self.place}", "nothing is timed here, as there is no scratch to relate it to")
            return
        rounds = self._rounds(self.runs[reference].run.device, end)
        rows = [throughput.run_row(run, rounds, self.runs, reference) for run in self.runs.values()]
        rows = [replace(row, shape=f"{row.shape} {self.place.name}") for row in rows]
        self.report.rows += rows
        self.report.say(f"{len(rounds)} rounds; speed is relative to {reference}")
        for row in sorted(rows, key=lambda row: row.name):
            head, *figures = cells(row, rows)[3:]
            self.report.say(f"  {row.name:17} {head:25}" + "  ".join(f"{figure:>12}" for figure in figures))
        if self.place.has_targets:
            self._compare_with_targets(rows)

    def _rounds(self, device: torch.device, end: float) -> throughput.Rounds:
        steps = {key: run.step for key, run in self.runs.items()}
        repeats = dict.fromkeys(steps, self.sizes.steps_per_round)
        rounds: throughput.Rounds = []
        while len(rounds) < FEWEST_ROUNDS or (len(rounds) < self.sizes.num_rounds and time.perf_counter() < end):
            rounds.append(time_round(steps, device, len(rounds), repeats))
        return rounds

    def _compare_with_targets(self, rows: list[Row]) -> None:
        """Missed ones are no fault: they are said, and kept."""
        for target in TARGETS:
            is_scratch = target.figure == "mfu"
            for row in rows:
                value = getattr(row, target.figure)
                if row.backend != target.lever or (row.name == f"steps/{SCRATCH}") != is_scratch or value is None:
                    continue
                bound = 1.0 if is_scratch else self._bound(row)
                verdict = "reached" if value >= target.least * bound else "MISSED"
                line = f"{row.name}, {row.backend}: {target.figure} {value:.3g}, target {target.least * bound:.3g}"
                if not is_scratch:
                    share = f"{value / bound:.0%} of its FLOP bound {bound:.3g}, {target.least:.0%} wanted"
                    line += f" ({share})"
                line += f": {verdict}"
                self.report.say(line)
                self.report.found["targets"].append(line)

    def _bound(self, row: Row) -> float:
        """`flop_bound` of a row that is relative to scratch."""
        costs = {key: run.run.cost for key, run in self.runs.items()}
        scratch = next(cost for key, cost in costs.items() if key.startswith(f"steps/{SCRATCH} "))
        return flop_bound(scratch, costs[f"{row.name} {row.backend}"], row.backend)

    def profile(self) -> None:
        """List the kernels of the compiled arms that `StepSizes.profiled` names, and write a trace of each."""
        for arm in self.sizes.profiled:
            if (run := self.runs.get(f"steps/{arm} {COMPILED}")) is not None:
                place = str(self.place).replace(" ", "_")
                self.report.guarded(f"profile of {arm}", profiling.profile, run, f"{arm}_{place}", self.report)


def free_memory() -> None:
    """Give back what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _in_words(losses: Losses) -> str:
    """Of the first and the last step: ``kd 1.23, mlm 10.4 to kd 1.20, mlm 10.3``."""
    first, last = (", ".join(f"{term} {value:.4g}" for term, value in step.items()) for step in (losses[0], losses[-1]))
    return f"{first} to {last}"
