"""One rank of a grid that `bench finetune` times: a whole grid for each line on standard input, to that output."""

import json
import os
import sys
from pathlib import Path

from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.ranks import dist
from kd_megatron.recipe import FinetuneRecipe

WARM_UP_EXAMPLES = 32


def main() -> None:
    """Join the other ranks, then run whenever the benchmark asks, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    model, raw, warm_up = json.loads(sys.argv[1])
    recipe = FinetuneRecipe.model_validate(raw)
    with dist.joined(share_devices=True):
        run_grid(model, _small(recipe), Path(warm_up))
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            summary = run_grid(model, recipe, Path(line.strip()))
            print("done", summary["average"], file=answers, flush=True)


def _small(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """A grid that needs every import and takes no time."""
    few = {"max_train_examples": WARM_UP_EXAMPLES, "max_dev_examples": WARM_UP_EXAMPLES}
    tasks = [task.model_copy(update=few) for task in recipe.tasks]
    return recipe.model_copy(update={"tasks": tasks, "epochs": 1.0})


if __name__ == "__main__":
    main()
