"""One rank of two: the same steps with gradients reduced during the backward pass, and after it by DeepSpeed.

python reduction_worker.py INPUTS OUTPUT
"""

import json
import sys
from pathlib import Path

import torch
from curves import learn
from tiny_study import tiny_study

from kd_megatron.console import logs
from kd_megatron.engine.reduction import OverlappedReduction
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.training.setup import prepare_run

NUM_STEPS = 3


def weights(inputs: Path, directory: Path, overlaps: bool, **training: str) -> tuple[dict[str, torch.Tensor], int, int]:
    """The weights after some steps; how many buckets there are, and how many were sent within a backward pass."""
    study = tiny_study(inputs, training={"micro_batch_size": 2, **training})  # two micro-batches a step and rank
    early, finish = 0, OverlappedReduction.finish
    run = prepare_run(study, "minilm", 0, directory, str(inputs / "teacher"))
    assert run.engine._reduction is not None
    run.engine._reduction.close()
    if overlaps:
        trained = [parameter for parameter in run.module.parameters() if parameter.requires_grad]
        run.engine._reduction = OverlappedReduction(trained, run.engine._reduction.dtype, 2, bucket_bytes=4096)

        def counted(self: OverlappedReduction) -> None:
            nonlocal early
            early += sum(bucket.sent is not None for bucket in self.buckets)
            finish(self)

        OverlappedReduction.finish = counted  # type: ignore[method-assign]
    else:
        run.engine._reduction = None
        run.engine.deepspeed.enable_backward_allreduce = True
    learn(run, NUM_STEPS, rate=3e-3)
    OverlappedReduction.finish = finish  # type: ignore[method-assign]
    num_buckets = len(run.engine._reduction.buckets) if run.engine._reduction else 0
    found = run.engine.full_weights()
    run.close()
    return found, num_buckets, early


def main() -> None:
    inputs, output = Path(sys.argv[1]), Path(sys.argv[2])
    logs.quiet_libraries()
    dist.initialise()
    rows = {}
    for precision in ("fp32", "bf16"):
        for sent_in in ("fp32", "bf16"):
            name, options = f"{precision} {sent_in}", {"precision": precision, "reduce_precision": sent_in}
            after, _, _ = weights(inputs, output.parent / f"{name} after", overlaps=False, **options)
            during, num_buckets, early = weights(inputs, output.parent / f"{name} during", overlaps=True, **options)
            rows[name] = {
                "equal": all(torch.equal(after[key], during[key]) for key in after),
                "buckets": num_buckets,
                "early": early,
                "sum": float(sum(weight.double().abs().sum() for weight in during.values())),
            }
    if dist.is_main():
        output.write_text(json.dumps(rows), encoding="utf-8")
    dist.shut_down()


if __name__ == "__main__":
    main()
    exit_process(0)
