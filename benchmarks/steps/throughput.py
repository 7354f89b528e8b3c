"""Whole training steps of every arm, timed in turn in one process group: what each objective costs in tokens.

Arms alternate step by step, and every other round goes backwards, so that a machine whose speed drifts slows them all
alike; ratios are to be quoted, not absolute times.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.rows import Row, percentile, timing_figures
from benchmarks.steps.ladder import rungs
from benchmarks.steps.peers import Peer
from benchmarks.steps.variants import TimedVariant, arm_variant, built
from benchmarks.timing import Steps, time_round
from kd_megatron.console.logs import progress_bar, say
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import run_recipe

SEARCH_STEPS = 3  # of each micro-batch size, when the best one is looked for

Rounds = list[dict[str, float]]


def time_arms(recipe: StudyRecipe, num_steps: int, teacher_path: str | None, peers: Sequence[Peer] = ()) -> list[Row]:
    """Time ``num_steps`` steps of every arm of ``recipe``, and of ``peers``, in turn. Collective."""
    variants = [arm_variant(recipe, arm) for arm in recipe.arms]
    reference = f"step/{reference_arm(recipe)}"
    with built(variants, teacher_path) as runs:
        steps = {name: run.step for name, run in runs.items()} | {peer.key: peer.step for peer in peers}
        rounds = _time(steps, next(iter(runs.values())).run.device, num_steps)
        rows = [run_row(run, rounds, runs, reference) for run in runs.values()]
        tokens = {name: run.num_tokens for name, run in runs.items()}
    return [*rows, *(_peer_row(peer, rounds, tokens) for peer in peers)]


def time_ladder(recipe: StudyRecipe, num_steps: int, teacher_path: str | None) -> list[Row]:
    """Time the rungs of `ladder.rungs` of every distilling arm, one arm after the other, beside scratch. Collective."""
    scratch = reference_arm(recipe)
    rows: list[Row] = []
    for arm in recipe.arms:
        with tempfile.TemporaryDirectory() as cache:
            variants = rungs(run_recipe(recipe, arm, recipe.seeds[0]), arm, Path(dist.from_main(cache)))
            if not variants:
                continue
            reference = arm_variant(recipe, scratch)
            with built([reference, *variants], teacher_path) as runs:
                steps = {name: run.step for name, run in runs.items()}
                rounds = _time(steps, next(iter(runs.values())).run.device, num_steps)
                found = [run_row(run, rounds, runs, reference.key) for run in runs.values()]
            rows += found if not rows else found[1:]
    return rows


def reference_arm(recipe: StudyRecipe) -> str:
    """The arm that ratios are relative to: the first one that pretrains from scratch, else the first."""
    return next((arm for arm, raw in recipe.arms.items() if raw["objective"] == "scratch"), next(iter(recipe.arms)))


def at_best_batch(recipe: StudyRecipe, sizes: Sequence[int], teacher_path: str | None) -> StudyRecipe:
    """``recipe`` with each arm's fastest micro-batch size of ``sizes`` as its own override. Collective.

    The global batch stays: the split changes no result.
    """
    arms = {}
    for arm, options in recipe.arms.items():
        speeds = {size: _speed(with_micro_batch(recipe, arm, size), arm, teacher_path) for size in sizes}
        best = dist.from_main(max(speeds, key=speeds.__getitem__))
        tried = ", ".join(f"{size}: {speed:,.0f}" for size, speed in speeds.items())
        say(f"{arm}: tokens/s by micro-batch size {tried}")
        arms[arm] = {**options, "training.micro_batch_size": best}
    return allowing_micro_batches(recipe).model_copy(update={"arms": arms})


def with_micro_batch(recipe: StudyRecipe, arm: str, size: int) -> StudyRecipe:
    """``recipe`` with ``arm`` alone, at this micro-batch size."""
    arms = {arm: {**recipe.arms[arm], "training.micro_batch_size": size}}
    return allowing_micro_batches(recipe).model_copy(update={"arms": arms})


def allowing_micro_batches(recipe: StudyRecipe) -> StudyRecipe:
    """``recipe`` in which arms may differ in their micro-batch size, which only a benchmark wants."""
    return recipe.model_copy(update={"allow_difference": [*recipe.allow_difference, "training.micro_batch_size"]})


def _speed(recipe: StudyRecipe, arm: str, teacher_path: str | None) -> float:
    """Tokens per second of ``arm`` alone; 0 where it does not fit into a GPU's memory."""
    try:
        with built([arm_variant(recipe, arm)], teacher_path) as runs:
            ((name, run),) = runs.items()
            rounds = [time_round({name: run.step}, run.run.device, number) for number in range(SEARCH_STEPS)]
            return run.num_tokens / percentile([seconds[name] for seconds in rounds], 0.5)
    except torch.OutOfMemoryError:
        return 0.0


def _time(steps: Steps, device: torch.device, num_rounds: int) -> Rounds:
    rounds = []
    with progress_bar("rounds") as bar:
        task = bar.add_task("timing", total=num_rounds, note="")
        for number in range(num_rounds):
            rounds.append(time_round(steps, device, number))
            bar.advance(task)
    return rounds


def run_row(run: TimedVariant, rounds: Rounds, runs: Mapping[str, TimedVariant], reference: str) -> Row:
    """The figures of ``run``, relative to the one named ``reference``."""
    variant, name = run.variant, run.variant.key
    figures = timing_figures(
        [seconds[name] for seconds in rounds],
        [seconds[reference] for seconds in rounds],
        run.num_tokens,
        runs[reference].num_tokens,
    )
    return Row(
        name=variant.name,
        backend=variant.backend,
        shape=run.shape,
        dtype=variant.study.training.precision,
        device=run.run.device.type,
        peak_mib=run.peak_mib,  # on a CPU the arms share one process and one heap
        ratio_to=reference.removeprefix("step/"),
        mfu=run.flops_share(figures["tokens_per_second"]),
        **figures,
    )


def _peer_row(peer: Peer, rounds: Rounds, tokens: Mapping[str, int]) -> Row:
    reference = f"step/{peer.ratio_to}"
    figures = timing_figures(
        [seconds[peer.key] for seconds in rounds],
        [seconds[reference] for seconds in rounds],
        peer.num_tokens,
        tokens[reference],
    )
    return Row(
        name=peer.name,
        backend=peer.version,
        shape=peer.shape,
        dtype=peer.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        peak_mib=None,
        ratio_to=peer.ratio_to,
        **figures,
    )
