"""A whole study on several processes, for the numbers of its controls.

python controls_worker.py STUDY RECIPE.json
"""

import sys
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.runner import run_study

if __name__ == "__main__":
    directory, recipe = sys.argv[1:]
    logs.quiet_libraries()
    dist.initialise()
    run_study(StudyRecipe.model_validate_json(Path(recipe).read_text()), Path(directory), lambda _: None)
    dist.shut_down()
    exit_process(0)
