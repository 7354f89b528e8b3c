"""Runs one arm until a step at which it is told to stop, as by a preemption notice; its code is then 75.

python interrupted_worker.py RECIPE ARM OUTPUT TEACHER STOP_STEP
"""

import os
import signal
import sys
from pathlib import Path

from kd_megatron.errors import Interrupted
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.training import loop
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import Run

recipe, arm, output, teacher, stop_step = sys.argv[1:]
charge = loop.charge


def charge_and_stop(run: Run) -> None:
    charge(run)
    if run.ledger.steps == int(stop_step) and dist.is_main():
        os.kill(os.getpid(), signal.SIGTERM)


loop.charge = charge_and_stop
try:
    pretrain(config.load(recipe, StudyRecipe), arm, 0, Path(output), teacher)
    code = 0
except Interrupted as error:
    print(error)
    code = error.exit_code
dist.shut_down()
exit_process(code)
