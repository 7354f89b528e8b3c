"""What ``training.compile: auto`` means: decided once, before any arm is trained, and so alike for all of them.

Compiled are the layers and MLM head of student and teacher, which all arms share. Before they are, a process of its own
compiles one layer of each (`compile_trial`), within a time limit: where it fails, no arm is compiled. What was decided
is written into the recipe that is recorded, and a study or run that has begun keeps it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from kd_megatron.console.logs import say
from kd_megatron.engine.batch_split import split
from kd_megatron.engine.build import is_in_pieces
from kd_megatron.machine import toolchain
from kd_megatron.ranks import dist, failures
from kd_megatron.recipe import StudyRecipe, recipe_yaml
from kd_megatron.recipe.arms import resolve_arm

TRIAL = "kd_megatron.engine.compile_trial"
SECONDS = 300.0  # for the trial, unless KD_COMPILE_SECONDS says otherwise; less than a rank may be silent


def resolve_compile(recipe: StudyRecipe, begun: Path | None = None) -> StudyRecipe:
    """``recipe`` with ``training.compile`` decided. Collective; rank 0 decides.

    Args:
        recipe: its precision is decided already (`machine.precision`).
        begun: the recipe that the study or run was begun with, where it has begun: what was decided then holds.
    """
    if recipe.training.compile != "auto":
        return recipe
    compiles = dist.on_main(lambda: _decide(recipe, begun))
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"compile": compiles})})


def _decide(recipe: StudyRecipe, begun: Path | None) -> bool:
    as_begun = _recorded(begun)
    if as_begun is not None:
        return as_begun
    if not torch.cuda.is_available() or _in_pieces(recipe):
        return False
    start = time.perf_counter()
    why = toolchain.problem() or trial_problem(recipe)
    if why is None:
        say(f"training.compile: auto is true for all arms; a layer was compiled in {time.perf_counter() - start:.0f} s")
    else:
        say(f"training.compile: auto is false for all arms, which are slower for it: {why}")
    return why is None


def _recorded(begun: Path | None) -> bool | None:
    """What the recipe at ``begun`` says; None where there is none, or it decided nothing."""
    if begun is None or not begun.is_file():
        return None
    try:
        found = recipe_yaml.read(begun.read_text(encoding="utf-8"))["training"]["compile"]
    except (ValueError, KeyError, TypeError):
        return None  # whoever claims the directory says what is wrong with the file
    return found if isinstance(found, bool) else None


def _in_pieces(recipe: StudyRecipe) -> bool:
    """Whether weights of some arm, or the teacher's, are gathered in hooks, which compiled code would go round."""
    if recipe.teacher is not None and recipe.teacher.partition:
        return True
    return any(is_in_pieces(resolve_arm(recipe, arm).training) for arm in recipe.arms)


def trial_problem(recipe: StudyRecipe) -> str | None:
    """Why one layer of student and teacher could not be compiled here within the time; None where it could."""
    limit = failures.seconds_of("KD_COMPILE_SECONDS", SECONDS)
    order = {"recipe": recipe.model_dump(mode="json"), "batch_size": split(recipe.training, dist.world_size()).size}
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    process = subprocess.Popen(
        [sys.executable, "-m", TRIAL],
        env=alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(json.dumps(order), timeout=limit)
    except subprocess.TimeoutExpired:
        return f"one layer of each model was not compiled within {limit:g} s (KD_COMPILE_SECONDS)"
    finally:
        if process.poll() is None:  # with the compiler's own processes
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return None
    lines = [line for line in output.splitlines() if line.strip()]
    return f"a layer cannot be compiled: {lines[-1] if lines else f'exit code {process.returncode}'}"
