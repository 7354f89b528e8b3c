"""Whether a study's models are compiled, decided once and alike for all arms (``training.compile: auto``).

Compiled code is faster, and a compiler can fail, or take so long that nothing is gained. If that were found out by
each arm for itself, one of them might run slower code than the others. So every arm is built and compiled once, before
anything is timed or trained; what it took is kept in ``compile.json``. If one arm's compilation fails, or takes longer
than ``training.compile_limit_seconds``, no arm is compiled. The limit is looked at when an arm's compilation is over: a
compiler cannot be stopped on its way. Later runs find the compiled code in torch's cache on the disk.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kd_megatron.console.logs import say, warn
from kd_megatron.engine.build import stage_of
from kd_megatron.errors import KdError, disk_full_is_clear
from kd_megatron.files.records import write_json
from kd_megatron.objectives import schedule
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import COMPILE_FILE, read, run_recipe, with_compile
from kd_megatron.study.piece import Piece, teacher_path
from kd_megatron.training.setup import prepare_run


def compile_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The decision, where the recipe leaves it open and the machine can compile; elsewhere nothing is compiled."""
    if recipe.training.compile != "auto" or not may_compile(recipe):
        return []
    path = directory / COMPILE_FILE

    def is_finished() -> bool:
        found = read(path)
        return found is not None and recipe.arms.keys() <= found["arms"].keys()

    def run() -> None:
        before = dist.from_main(read(path))
        if before is None or before["compiled"]:  # arms that come later follow the others where those are not compiled
            found = decide(recipe, teacher_path(recipe, directory))
        else:
            found = before | {"arms": dict.fromkeys(recipe.arms) | before["arms"]}
        refuse_other_decision(before, found)
        if dist.is_main():
            with disk_full_is_clear(directory):
                write_json(path, found)
        dist.barrier()

    return [Piece("compile", "compile: every arm once", is_finished, run)]


def settled(recipe: StudyRecipe, directory: Path) -> StudyRecipe:
    """``recipe`` with the decision in it, made now where it has not been made. Collective; inputs are there."""
    for piece in compile_pieces(recipe, directory):
        if not dist.on_main(piece.is_finished):
            directory.mkdir(parents=True, exist_ok=True)
            say(piece.label)
            piece.run()
    return dist.from_main(with_compile(recipe, directory))


def decide(recipe: StudyRecipe, teacher: str | None) -> dict[str, Any]:
    """Compile every arm; what ``compile.json`` holds. Collective, and says what it found.

    Returns:
        ``compiled``: for all arms; ``why_not``: None, or what was in the way; ``arms``: arm -> seconds that its models
        took to be compiled on the slowest rank, None where it did not come to that; ``limit_seconds``, ``torch``.
    """
    seconds: dict[str, float | None] = dict.fromkeys(recipe.arms)
    limit = recipe.training.compile_limit_seconds
    why_not = None
    for arm in recipe.arms:
        if why_not is not None:
            break
        seconds[arm], fault = _compile(recipe, arm, teacher)
        taken = seconds[arm] or 0.0
        if fault is not None:
            why_not = f"arm {arm} cannot be compiled: {fault}"
        elif taken > limit:
            why_not = f"arm {arm} took {taken:.0f} s to be compiled, more than training.compile_limit_seconds {limit:g}"
        else:
            say(f"{arm}: compiled in {taken:.0f} s")
    if why_not is not None:
        warn(f"no arm is compiled: {why_not}")
    return {
        "compiled": why_not is None,
        "why_not": why_not,
        "arms": seconds,
        "limit_seconds": limit,
        "torch": torch.__version__,
    }


def may_compile(recipe: StudyRecipe) -> bool:
    """Whether there is a GPU, and every process holds all weights of student and teacher."""
    in_pieces = stage_of(recipe.training) == 3 or (recipe.teacher is not None and recipe.teacher.partition)
    return torch.cuda.is_available() and not in_pieces


def refuse_other_decision(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise `KdError` where an arm that came later cannot be compiled, and others are trained compiled already."""
    if before is not None and before["compiled"] and not now["compiled"]:
        raise KdError(
            given=f"the study's arms {', '.join(before['arms'])} were compiled; now {now['why_not']}",
            expected="all arms of a study compiled, or none",
            fix=f"mend the cause; or set training.compile to false and train all arms anew, without {COMPILE_FILE}",
        )


def _compile(recipe: StudyRecipe, arm: str, teacher: str | None) -> tuple[float | None, str | None]:
    """Seconds of the slowest rank, and what went wrong on any; of a schedule, its phases together. Collective."""
    whole = with_compiling(run_recipe(recipe, arm, recipe.seeds[0]))
    seconds, fault = 0.0, None
    for _, options in schedule.split(whole.arms[arm]):
        study = whole.model_copy(update={"arms": {arm: options}})
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as scratch, stages.stage("compilation", watched=False):
                run = prepare_run(study, arm, study.seeds[0], Path(scratch), teacher)
                seconds += run.warm_up_seconds
                run.close()
        except (KdError, torch.OutOfMemoryError):
            raise  # nothing that another way of running would mend
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            fault = f"{type(error).__name__}: {first_line} ({time.perf_counter() - start:.0f} s)"
        torch.compiler.reset()
        faults = [one for one in dist.gather(fault) if one is not None]
        if faults:
            return None, faults[0]
    return max(dist.gather(seconds)), None


def with_compiling(recipe: StudyRecipe) -> StudyRecipe:
    """``recipe`` with its models compiled, and the teacher asked each time: a store is filled by training alone."""
    teacher = recipe.teacher and recipe.teacher.model_copy(update={"cache": None})
    training = recipe.training.model_copy(update={"compile": True})
    return recipe.model_copy(update={"training": training, "teacher": teacher})
