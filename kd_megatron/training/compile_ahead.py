"""Compiles a run's layers and kernels before its first step, and charges nobody for it.

Compilation takes seconds to minutes, and longer for an arm whose layers are of more kinds. Left to the first step, it
would be charged to a budget in time, and an arm would lose training to its compiler.
"""

import time
from collections.abc import Sequence

import torch

from kd_megatron.console.logs import say
from kd_megatron.engine.build import Engine
from kd_megatron.errors import EnvironmentFault
from kd_megatron.ledger import Ledger
from kd_megatron.machine import compiler
from kd_megatron.tensors import Batch
from kd_megatron.training.step import StudentWithObjective
from kd_megatron.training.teacher import Teacher


def compile_ahead(
    module: StudentWithObjective, engine: Engine, teacher: Teacher | None, batch: Batch, ledger: Ledger
) -> None:
    """Run one forward and backward of the size of a micro-batch and forget it: weights, state and ledger stay.

    Gradients are asked for by name and kept by nobody, so that no engine reduces them. Called when the engine has
    given the weights their dtype. Collective where the teacher is.

    Raises:
        EnvironmentFault: something cannot be compiled. There is no way back for one arm alone: it would be a slow one.
    """
    if engine.device.type == "cpu" and not module.student.execution.compile:
        return  # nothing is compiled
    from torch._dynamo.exc import TorchDynamoException  # imports the compiler, which is not needed elsewhere
    from torch._inductor.exc import InductorError

    compiler.allow_all_kinds_of_layers()
    name = module.objective.options.objective
    start = time.perf_counter()
    devices = [engine.device] if engine.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), ledger.uncharged():
            _run(module.train(), teacher, batch.to(engine.device))
    except torch.OutOfMemoryError:
        raise
    except (TorchDynamoException, InductorError) as error:
        raise EnvironmentFault(
            given=f"training.compile: {name} cannot be compiled here: {_in_words(error)}",
            expected="layers that torch.compile compiles, alike for all arms",
            fix="set training.compile to false: for all arms, so that they stay comparable",
        ) from error
    if devices:
        torch.cuda.synchronize(engine.device)
    say(f"compiled in {time.perf_counter() - start:.0f} s, which no budget is charged for")


def _run(module: StudentWithObjective, teacher: Teacher | None, batch: Batch) -> None:
    inputs = module.objective.options.inputs
    sums = module(batch, None if teacher is None else teacher.rehearse(batch, inputs))
    loss = torch.stack([sums[term] * module.objective.weights[term] for term in sums]).sum()
    trained: Sequence[torch.Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, trained, allow_unused=True)


def _in_words(error: Exception) -> str:
    """The compiler's message: its first paragraph, before advice on how to debug it."""
    return " ".join(str(error).strip().partition("\n\n")[0].split()) or type(error).__name__
