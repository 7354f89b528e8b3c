"""Seconds of several computations, taken in turn: what slows the machine down slows them all alike."""

import time
from collections.abc import Callable, Mapping

import torch

MIN_ROUNDS, MAX_ROUNDS = 5, 50
GPU_WINDOW_SECONDS = 0.02  # one timing on a GPU covers at least this, so that the launches hide behind the work

Steps = Mapping[str, Callable[[], object]]


def time_in_turn(steps: Steps, device: torch.device, budget_seconds: float) -> list[dict[str, float]]:
    """Seconds by name, a dictionary for each round: `MIN_ROUNDS` rounds, and more while the budget lasts.

    Every other round goes backwards: no step always follows the one that leaves most memory behind.
    """
    repeats = {name: _repeats(step, device) for name, step in steps.items()}
    end = time.perf_counter() + budget_seconds
    rounds: list[dict[str, float]] = []
    while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and time.perf_counter() < end):
        rounds.append(time_round(steps, device, len(rounds), repeats))
    return rounds


def time_round(
    steps: Steps, device: torch.device, number: int, repeats: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Seconds of each step in round ``number``, which runs backwards when it is odd; once each without ``repeats``."""
    order = list(steps)[:: -1 if number % 2 else 1]
    return {name: _time(steps[name], repeats[name] if repeats else 1, device) for name in order}


def _repeats(step: Callable[[], object], device: torch.device) -> int:
    """How often a step is repeated within one timing. It has run before, so nothing is compiled here."""
    if device.type != "cuda":
        return 1
    return max(1, round(GPU_WINDOW_SECONDS / _time(step, 1, device)))


def _time(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
