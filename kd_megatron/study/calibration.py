"""Fixes the steps of budgets in time before training (docs/fairness.md, clause 15).

By the clock alone, whatever else a machine does while one arm trains is taken from that arm. So every arm's training
step is measured first, in interleaved short runs of one process group, and an arm's steps are what the budget is good
for at its median speed. Only the charged accounts count, as in the budget itself.
"""

import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from kd_megatron.console.logs import new_table, say
from kd_megatron.errors import EnvironmentFault, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.machine import facts as machine
from kd_megatron.objectives import schedule
from kd_megatron.ranks import dist
from kd_megatron.recipe import CalibrateRecipe, StudyRecipe
from kd_megatron.study.budget_checks import require_enough
from kd_megatron.study.effective import CALIBRATION_FILE, read, run_recipe, with_steps
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.training.fingerprint import PACKAGES
from kd_megatron.training.timed_run import TimedRun, built

# On a GPU a step takes milliseconds, and the first ones of a turn run at other clocks: a turn has at least this many
# steps, or takes this long.
GPU_STEPS, GPU_SECONDS = 50, 5.0
STEPS_TO_JUDGE = 5  # that say how long a step takes
SAME_MACHINE = ("device", "num_threads_per_process", "num_processes")  # of ``hardware``: what speed hangs on


def calibration_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The measurement, where the recipe asks for one; what is there of other arms stays as it is."""
    calibrate, path = recipe.budget.calibrate, directory / CALIBRATION_FILE
    if calibrate is None:
        return []

    def is_finished() -> bool:
        found = read(path)
        return found is not None and recipe.arms.keys() <= found["arms"].keys()

    def run() -> None:
        before = dist.from_main(read(path))
        if before is not None:
            refuse_other_machine(before)
        found = joined(before, measure(recipe, calibrate, teacher_path(recipe, directory)))
        for arm in recipe.arms:
            _require_enough(run_recipe(recipe, arm, recipe.seeds[0]), arm, found)
        if dist.is_main():
            with disk_full_is_clear(directory):
                write_json(path, found)
        for line in in_words(found):
            say(line)
        dist.barrier()

    return [Piece("calibration", "calibration: time every arm's steps", is_finished, run, barrier=True)]


def _require_enough(run: StudyRecipe, arm: str, calibration: dict[str, Any]) -> None:
    """Refuse a budget below one step at the measured speed, or with fewer steps than validations."""
    with_steps(run, arm, calibration)
    speed = float(calibration["arms"][arm]["tokens_per_second"]["p50"])
    require_enough(run, arm, 0.0, speed, calibration["hardware"]["num_processes"])


def measure(recipe: StudyRecipe, calibrate: CalibrateRecipe, teacher: str | None) -> dict[str, Any]:
    """Time every arm of ``recipe`` in turn; what ``calibration.json`` holds. Collective.

    Returns:
        ``arms``: arm -> ``tokens_per_second`` (of the whole job, in charged seconds of rank 0: ``p20``, ``p50``,
        ``p80`` over the rounds, and all of them) and ``tokens_per_step``; beside it what was measured, how, when and
        on what.
    """
    phases = {arm: _phases(recipe, arm) for arm in recipe.arms}
    speeds: dict[str, list[float]] = {arm: [] for arm in recipe.arms}
    makers = {
        (arm, number): partial(TimedRun, study, arm, teacher_path=teacher)
        for arm, found in phases.items()
        for number, (_, study) in enumerate(found)
    }
    with built(makers) as runs:
        steps = {key: turn_steps(run, calibrate.steps) for key, run in runs.items()}
        for number in range(calibrate.rounds):
            for arm in list(phases)[:: -1 if number % 2 else 1]:  # no arm always follows the same one
                keys = [(share, (arm, phase)) for phase, (share, _) in enumerate(phases[arm])]
                # Over steps of which each share is taken at its own speed: seconds add up, speeds do not.
                speeds[arm].append(1.0 / sum(share / _speed(runs[key], steps[key]) for share, key in keys))
        arms = {
            arm: {"tokens_per_second": _spread(speeds[arm]), "tokens_per_step": runs[arm, 0].num_tokens}
            | {"steps_of_a_turn": max(steps[arm, phase] for phase in range(len(phases[arm])))}
            for arm in phases
        }
    facts = machine.facts(PACKAGES)
    facts["hardware"]["num_processes"] = dist.world_size()
    return {
        "date": time.strftime("%Y-%m-%d"),
        **facts,
        "charge": list(recipe.budget.charge),
        "precision": recipe.training.precision,
        "rounds": calibrate.rounds,
        "steps": calibrate.steps,
        "arms": arms,
    }


def _phases(recipe: StudyRecipe, arm: str) -> list[tuple[float, StudyRecipe]]:
    """What is timed of ``arm``: the whole of it, or each phase of a schedule with its share of the steps."""
    whole = run_recipe(recipe, arm, recipe.seeds[0])
    return [
        (share, whole.model_copy(update={"arms": {arm: options}})) for share, options in schedule.split(whole.arms[arm])
    ]


def _speed(timed: TimedRun, num_steps: int) -> float:
    """Tokens of all ranks per charged second of rank 0, over ``num_steps`` steps."""
    timed.run.step.check()  # what came before is done
    before = timed.run.charged_seconds()
    for _ in range(num_steps):
        timed.step()
    timed.run.step.check()  # a GPU works behind the host: its seconds are whole once it was waited for
    seconds = dist.number_from_main(timed.run.charged_seconds() - before)
    return num_steps * timed.num_tokens / seconds


def turn_steps(timed: TimedRun, asked: int) -> int:
    """How many steps a turn has: those that the recipe asks for, on a GPU more where they would be over too soon."""
    if timed.run.device.type != "cuda":
        return asked
    seconds_per_step = timed.num_tokens / _speed(timed, STEPS_TO_JUDGE)
    return max(asked, min(GPU_STEPS, math.ceil(GPU_SECONDS / seconds_per_step)))


def _spread(speeds: list[float]) -> dict[str, Any]:
    found = {f"p{round(100 * share)}": float(np.quantile(speeds, share)) for share in (0.2, 0.5, 0.8)}
    return {**found, "rounds": speeds}


def joined(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """What is kept when arms were added to a calibrated study: old arms keep their speeds, which fixed their steps.

    The new arms' speeds are brought to the old arms' level, by the median of what those ran at then and run at now:
    ratios between arms are steadier than a machine is.
    """
    kept = {arm: entry for arm, entry in (before or {"arms": {}})["arms"].items() if arm in now["arms"]}
    if before is None or not kept:
        return now
    level = statistics.median(
        entry["tokens_per_second"]["p50"] / now["arms"][arm]["tokens_per_second"]["p50"] for arm, entry in kept.items()
    )
    arms = {arm: kept.get(arm) or _scaled(entry, level) for arm, entry in now["arms"].items()}
    return {**before, "arms": arms}


def _scaled(entry: dict[str, Any], level: float) -> dict[str, Any]:
    speeds = [level * speed for speed in entry["tokens_per_second"]["rounds"]]
    return {**entry, "tokens_per_second": _spread(speeds), "scaled_by": level}


def refuse_other_machine(calibration: dict[str, Any]) -> None:
    """Raise `EnvironmentFault` on another machine than the one that was calibrated: its steps would take other hours.

    Collective: rank 0's machine decides.
    """
    here = machine.facts(())["hardware"] | {"num_processes": dist.world_size()}
    there = calibration["hardware"]
    differing = dist.from_main([key for key in SAME_MACHINE if here.get(key) != there.get(key)])
    if differing:
        was, now = ({key: facts.get(key) for key in differing} for facts in (there, here))
        raise EnvironmentFault(
            given=f"the study was calibrated with {_listed(was)}; here: {_listed(now)}",
            expected="the machine, threads and processes whose speed fixed the arms' steps",
            fix="go on there; or, while no student is trained yet, measure here anew: study RECIPE --recalibrate",
        )


def require_this_machine(directory: Path) -> None:
    """`refuse_other_machine` for the study in ``directory``, where it was calibrated."""
    if found := read(directory / CALIBRATION_FILE):
        refuse_other_machine(found)


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def in_words(calibration: dict[str, Any]) -> list[str]:
    """One line for each arm: its speed and how far it scattered."""
    speeds = {arm: entry["tokens_per_second"] for arm, entry in calibration["arms"].items()}
    return [
        f"{arm}: {one['p50']:,.0f} tokens/s ({one['p20']:,.0f} to {one['p80']:,.0f})" for arm, one in speeds.items()
    ]


def table(recipe: StudyRecipe, calibration: dict[str, Any]) -> Table:
    """Speeds, relative to the first arm, and the steps that a budget in time is good for."""
    title = f"Speed of each arm: {calibration['rounds']} rounds of {calibration['steps']} steps, in turn"
    shown = new_table(title, "arm", "tokens/s", "p20 to p80", "relative", "steps of the budget")
    first = next(iter(calibration["arms"].values()))["tokens_per_second"]["p50"]
    for arm, entry in calibration["arms"].items():
        speed = entry["tokens_per_second"]
        run = run_recipe(recipe, arm, recipe.seeds[0])
        steps = ""
        if run.budget.is_time:
            fixed = with_steps(run, arm, calibration).budget.calibrated
            steps = f"{fixed.steps:,}" if fixed else ""
        spread = f"{speed['p20']:,.0f} to {speed['p80']:,.0f}"
        shown.add_row(arm, f"{speed['p50']:,.0f}", spread, f"{speed['p50'] / first:.2f}", steps)
    return shown
