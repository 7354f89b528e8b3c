"""Trains one arm under several ways of reducing gradients in one process group; rank 0 writes losses and hashes.

python reduction_worker.py INPUTS OUTPUT WAY:PRECISION:REDUCED_IN ...   WAY: ours, small (buckets of ours) or deepspeed
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from curves import learn
from tiny_study import tiny_study

from kd_megatron.console import logs
from kd_megatron.engine import build
from kd_megatron.engine.reduction import OverlappedReduction
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.training.setup import Run, prepare_run

NUM_STEPS = 4
SMALL = 500  # elements of a bucket: some parameters are larger, so that they have one of their own


def reduce_by(run: Run, way: str) -> int:
    """Change how ``run`` reduces; the number of its buckets."""
    engine = run.engine
    reduction = engine._reduction
    assert reduction is not None
    if way == "ours":
        return reduction.num_buckets
    reduction.close()
    if way == "deepspeed":
        engine._reduction, engine.deepspeed.enable_backward_allreduce = None, True
        return 0
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    engine._reduction = OverlappedReduction(trained, reduction.dtype, SMALL)
    return engine._reduction.num_buckets


def outcome(inputs: Path, directory: Path, case: str) -> dict[str, Any]:
    way, precision, reduced_in = case.split(":")
    training = {"micro_batch_size": 2, "precision": precision, "gradient_reduction": reduced_in}  # 2 micro-batches
    study = tiny_study(inputs, training=training)
    run = prepare_run(study, "minilm", 0, directory / case.replace(":", "_"), str(inputs / "teacher"))
    num_buckets = reduce_by(run, way)
    curve = learn(run, NUM_STEPS, rate=3e-3)
    weights = hashlib.sha256()
    for name, weight in run.engine.full_weights().items():
        weights.update(name.encode() + weight.numpy().tobytes())
    run.close()
    return {"curve": curve, "weights": weights.hexdigest(), "num_buckets": num_buckets}


if __name__ == "__main__":
    inputs, output, *cases = sys.argv[1:]
    logs.quiet_libraries()
    dist.initialise()
    assert build.REDUCED_IN.keys() == {"fp32", "bf16"}
    found = {case: outcome(Path(inputs), Path(output).parent, case) for case in cases}
    every = dist.gather({case: one["weights"] for case, one in found.items()})
    assert all(one == every[0] for one in every), "ranks have different weights"
    if dist.is_main():
        Path(output).write_text(json.dumps(found), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
