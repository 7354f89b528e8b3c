"""Teacher, student and objective on a device other than the CPU: no tensor stays behind, and no step looks at one.

The device ``meta`` has shapes and no numbers. Whatever mixes its tensors with the CPU's is an error, and so is whatever
reads one, which on a GPU would make the host wait.
"""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_megatron.kernels import door
from kd_megatron.ledger import Ledger
from kd_megatron.models.build import build_student, shape_of
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.tensors import Batch, Taps
from kd_megatron.training.step import StudentWithObjective
from kd_megatron.training.teacher import Teacher

ELSEWHERE = torch.device("meta")
NUM_SEQUENCES, LENGTH, NUM_SLOTS, VOCAB_SIZE = 2, 16, 3, 50
ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"objective": "scratch"},
    "vanilla_kd": {"objective": "vanilla_kd"},
    "distilbert": {"objective": "vanilla_kd", "positions": "all", "weight_cosine": 1.0},
    "minilm": {"objective": "minilm", "num_relation_heads": 4},
    "tinybert": {"objective": "tinybert"},
}


@pytest.fixture(autouse=True)
def _no_autocast_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "without_autocast", lambda tensor: contextlib.nullcontext())  # meta has no autocast


def batch_on(device: torch.device) -> Batch:
    ids, slots = ((NUM_SEQUENCES, size) for size in (LENGTH, NUM_SLOTS))
    return Batch(
        input_ids=torch.full(ids, 7, device=device),
        clean_ids=torch.full(ids, 8, device=device),
        attention_mask=None,
        masked_positions=torch.full(slots, 1, device=device),
        labels=torch.full(slots, 8, device=device),
        sample_ids=torch.arange(NUM_SEQUENCES, device=device),
    )


def models(arm: dict[str, Any]) -> tuple[StudentWithObjective, Teacher | None]:
    """The arm's student with objective, and its teacher, in bfloat16, elsewhere."""
    sizes = {"num_attention_heads": 4, "intermediate_size": 64}
    student = build_student(EncoderRecipe(hidden_size=32, num_layers=2, **sizes), VOCAB_SIZE, {}, seed=0)
    teacher = build_student(EncoderRecipe(hidden_size=32, num_layers=4, **sizes), VOCAB_SIZE, {}, seed=1)
    options = of_arm.parse_options(arm, where="arm")
    objective = of_arm.build(options, shape_of(student.config), shape_of(teacher.config))
    module = StudentWithObjective(TappedEncoder(student, objective.needs_student), objective, Ledger())
    module = module.to(ELSEWHERE, torch.bfloat16)
    if objective.needs_teacher is None:
        return module, None
    frozen = TappedEncoder(teacher, objective.needs_teacher).to(ELSEWHERE, torch.bfloat16)
    return module, Teacher(frozen.eval().requires_grad_(False))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_step_stays_on_its_device_and_reads_nothing_of_it(arm: str, backend: str):
    module, teacher = models({**ARMS[arm], "backend": backend})
    batch = batch_on(ELSEWHERE)
    sums = module(batch, None if teacher is None else teacher(batch, "masked"))
    torch.stack(list(sums.values())).sum().backward()
    counts = module.objective.counts(batch)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert gradients
    assert {tensor.device for tensor in (*sums.values(), *counts.values(), *gradients)} == {ELSEWHERE}


def with_one(taps: Taps) -> Taps:
    """A tap of the CPU among the others."""
    return Taps(**{**vars(taps), "queries": {layer: torch.zeros(tap.shape) for layer, tap in taps.queries.items()}})


def test_a_tensor_that_stays_behind_is_found():
    module, teacher = models(ARMS["minilm"])
    batch = batch_on(ELSEWHERE)
    assert teacher is not None
    with pytest.raises(ValueError, match="is on cpu"):
        module(batch, with_one(teacher(batch, "masked")))


def test_a_look_at_a_tensor_is_found():
    def looks(tensor: Tensor) -> bool:
        return bool((tensor > 0).any())

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        looks(torch.ones(3, device=ELSEWHERE))
