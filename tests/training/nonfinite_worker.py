"""Five steps without a look of the host; on the last rank alone the third one is not finite. Rank 0 writes JSON.

python nonfinite_worker.py INPUTS OUTPUT NAME:WHAT:DS_CONFIG:PRECISION ...      WHAT is loss or gradient
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from curves import Direct
from tiny_study import tiny_study

from kd_megatron.console import logs
from kd_megatron.errors import NonFiniteError
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run

BAD_STEP, NUM_STEPS = 3, 5


def case(inputs: Path, directory: Path, described: str) -> dict[str, Any]:
    name, what, ds_config, precision = described.split(":")
    study = tiny_study(inputs, training={"micro_batch_size": 2, "ds_config": ds_config, "precision": precision})
    run = prepare_run(study, "scratch", 0, directory / name, None)
    run.step.checks_every_step = False
    plant(run, what)
    before: dict[str, torch.Tensor] = {}
    for step in range(1, NUM_STEPS + 1):
        if step == BAD_STEP:
            before = kept(run)
        one_step(run, Direct(run.micro_batches), 1e-2, StopRequest())
        charge(run)
    after = kept(run)
    try:
        run.step.read()
        message = ""
    except NonFiniteError as error:
        message = str(error)
    run.engine.close()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    return {"message": message, "changed": changed, "num_kept": len(before)}


def plant(run: Run, what: str) -> None:
    """Make the loss, or one weight's gradient, NaN on the last rank in the bad step."""

    def is_due() -> bool:
        return run.ledger.steps + 1 == BAD_STEP and dist.rank() == dist.world_size() - 1

    if what == "loss":
        run.module.objective.register_forward_hook(
            lambda _module, _inputs, sums: (
                {term: value * torch.nan for term, value in sums.items()} if is_due() else sums
            )
        )
    else:
        run.module.student.model.bert.encoder.layer[0].output.dense.weight.register_hook(
            lambda gradient: gradient * torch.nan if is_due() else gradient
        )


def kept(run: Run) -> dict[str, torch.Tensor]:
    """Copies of all weights (masters) and of this rank's optimizer state."""
    state = {
        f"state {index} {name}": value.clone()
        for index, entry in enumerate(run.engine.deepspeed.basic_optimizer.state.values())
        for name, value in entry.items()
    }
    return run.engine.full_weights() | state


if __name__ == "__main__":
    inputs, output, *cases = sys.argv[1:]
    logs.quiet_libraries()
    dist.initialise()
    results = {described: case(Path(inputs), Path(output).parent, described) for described in cases}
    everyone = dist.gather(results)
    if dist.is_main():
        Path(output).write_text(json.dumps(everyone), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
