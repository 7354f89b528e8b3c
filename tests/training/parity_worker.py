"""Runs 20 steps of given objectives and configurations in one process group; rank 0 writes losses and norms as JSON.

python parity_worker.py INPUTS OUTPUT NAME:OBJECTIVE:DS_CONFIG:MICRO_BATCH_SIZE:PRECISION ...
"""

import json
import sys
from pathlib import Path

from curves import Curve, curve
from tiny_study import tiny_study

from kd_megatron.console import logs
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process

NUM_STEPS = 20


def case_curve(inputs: Path, directory: Path, case: str) -> Curve:
    name, objective, ds_config, micro_batch_size, precision = case.split(":")
    training = {"ds_config": ds_config, "micro_batch_size": int(micro_batch_size), "precision": precision}
    study = tiny_study(inputs, training=training)
    return curve(study, objective, directory / name, inputs / "teacher", NUM_STEPS, rate=3e-3)


if __name__ == "__main__":
    inputs, output, *cases = sys.argv[1:]
    logs.quiet_libraries()
    dist.initialise()
    curves = {case.split(":")[0]: case_curve(Path(inputs), Path(output).parent, case) for case in cases}
    if dist.is_main():
        Path(output).write_text(json.dumps(curves), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
