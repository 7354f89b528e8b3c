"""Runs 20 steps of given objectives and configurations in one process group; rank 0 writes losses and norms as JSON.

python parity_worker.py INPUTS OUTPUT NAME:OBJECTIVE:DS_CONFIG:MICRO_BATCH_SIZE:PRECISION ...
"""

import json
import sys
from pathlib import Path

from tiny_study import tiny_study

from kd_megatron import dist, logs
from kd_megatron.process import exit_process
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import prepare_run
from kd_megatron.training.signals import StopRequest

NUM_STEPS = 20


class Direct:
    """Batches without a prefetch thread."""

    def __init__(self, make):
        self.get = make


def curve(inputs: Path, directory: Path, case: str) -> list[dict[str, float]]:
    name, objective, ds_config, micro_batch_size, precision = case.split(":")
    training = {"ds_config": ds_config, "micro_batch_size": int(micro_batch_size), "precision": precision}
    study = tiny_study(inputs, training=training)
    run = prepare_run(study, objective, 0, directory / name, str(inputs / "teacher"))
    rows = []
    for _ in range(NUM_STEPS):
        result = one_step(run, Direct(run.micro_batches), rate=3e-3, stop=StopRequest())
        charge(run)
        losses = {term: value / result.counts[term] for term, value in result.sums.items()}
        rows.append({**losses, "grad_norm": result.grad_norm})
    run.engine.close()
    return rows


if __name__ == "__main__":
    inputs, output, *cases = sys.argv[1:]
    logs.quiet_libraries()
    dist.initialise()
    curves = {case.split(":")[0]: curve(Path(inputs), Path(output).parent, case) for case in cases}
    if dist.is_main():
        Path(output).write_text(json.dumps(curves), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
