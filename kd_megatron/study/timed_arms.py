"""Every arm of a study as a run that can be timed in turn with the others."""

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import run_recipe
from kd_megatron.training.timed_run import TimedRun, Variant


def arm_variant(recipe: StudyRecipe, arm: str) -> Variant:
    """The arm as the recipe has it."""
    study = run_recipe(recipe, arm, recipe.seeds[0])
    return Variant(f"step/{arm}", str(study.arms[arm].get("backend", "auto")), study, arm)


@contextmanager
def built(variants: Sequence[Variant], teacher_path: str | None) -> Iterator[dict[str, TimedRun]]:
    """The runs of ``variants`` by `_key`, warm; their memory is given back in the end."""
    runs: dict[str, TimedRun] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, variant in enumerate(variants):
            run = TimedRun(variant, scratch / str(number), teacher_path)
            stack.callback(run.close)
            runs[key(variant)] = run
        yield runs
    runs.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def key(variant: Variant) -> str:
    """What its seconds are kept under."""
    return variant.name if variant.name.startswith("step/") else f"{variant.name} {variant.backend}"
