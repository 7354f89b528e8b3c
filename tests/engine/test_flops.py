"""The hand count against torch's counter on the same modules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_shards import VOCAB_SIZE, write_tokenizer
from tiny_study import ARMS, write_teacher
from tolerances import FLOPS_RELATIVE
from torch.utils.flop_counter import FlopCounterMode

from kd_megatron.data.masking import num_masked
from kd_megatron.engine import flops
from kd_megatron.models.build import build_student, load_teacher, model_config, shape_of
from kd_megatron.models.taps import Execution, TappedEncoder
from kd_megatron.objectives import of_arm
from kd_megatron.objectives.base import Objective
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.tensors import Batch, Taps

LENGTH, NUM_MASKED = 32, 5
RECIPE = EncoderRecipe(hidden_size=24, num_layers=2, num_attention_heads=4, intermediate_size=48, max_positions=64)


def counted(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def attention_flops(config: Any, num_layers: int) -> float:
    """The counter does not see SDPA on the CPU: 2 products of L x L x D per layer."""
    return num_layers * 4.0 * LENGTH**2 * config.hidden_size


def batch() -> Batch:
    ids = torch.randint(5, VOCAB_SIZE, (1, LENGTH))
    positions = torch.arange(NUM_MASKED)[None]
    return Batch(ids, ids, None, positions, ids[:, :NUM_MASKED], torch.arange(1))


def multiply_out(taps: Taps) -> None:
    """The last product of the head, which the kernel of a loss makes."""
    if taps.logits is not None:
        taps.logits.dense()


def build(arm: str, teacher_config: Any) -> tuple[Any, Objective]:
    student = build_student(RECIPE, VOCAB_SIZE, {}, 0)
    options = of_arm.parse_options(ARMS[arm], where="test")
    return student, of_arm.build(options, shape_of(student.config), shape_of(teacher_config or student.config))


@pytest.mark.parametrize("arm", ARMS)
def test_forward_flops_of_the_teacher(arm: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    path = str(write_teacher(tmp_path / "teacher", tmp_path / "tokenizer"))
    config = model_config(path)
    _, objective = build(arm, config)
    needs = objective.needs_teacher
    if needs is None:
        return
    teacher = load_teacher(path, torch.float32, needs, torch.device("cpu"))
    expected = counted(lambda: multiply_out(teacher(batch()))) + attention_flops(config, needs.num_whole_layers(4))
    assert flops.teacher_flops(config, needs, LENGTH, NUM_MASKED) == pytest.approx(expected, rel=FLOPS_RELATIVE)


@pytest.mark.parametrize("recomputes", [False, True], ids=["keeps", "recomputes"])
@pytest.mark.parametrize("stops", [True, False], ids=["stops", "whole"])
@pytest.mark.parametrize("arm", ARMS)
def test_forward_and_backward_flops_of_the_student(arm: str, stops: bool, recomputes: bool) -> None:
    """The counter sees the backward of every product but attention's; the layers' share is checked to the last one."""
    student, objective = build(arm, None)
    needs, config = objective.needs_student, student.config
    encoder = TappedEncoder(student, needs, whole=not stops, execution=Execution(recompute=recomputes))

    def forward_and_backward() -> None:
        taps = encoder(batch())
        outputs = [*taps.queries.values(), *taps.keys.values(), *taps.values.values(), *taps.hidden.values()]
        if taps.logits is not None:
            outputs.append(taps.logits.dense())
        torch.stack([output.sum() for output in outputs]).sum().backward()

    total = counted(forward_and_backward)
    reached = needs.num_whole_layers(2)
    num_forward = (reached if stops else 2) + (reached if recomputes else 0)
    attention = attention_flops(config, num_forward) + 2 * attention_flops(config, reached)
    ours = flops.student_flops(config, needs, LENGTH, NUM_MASKED, stops, recomputes)
    # The first layer's input needs a gradient too (embeddings train), so nothing is saved there.
    assert ours == pytest.approx(total + attention, rel=FLOPS_RELATIVE)


def test_parameters_are_those_of_the_model() -> None:
    student = build_student(RECIPE, VOCAB_SIZE, {}, 0)
    assert flops.num_parameters(student.config) == sum(p.numel() for p in student.parameters())


def test_masked_positions_are_those_of_the_loader(tmp_path: Path) -> None:
    from tiny_study import tiny_study

    for length in (16, 32, 64, 128, 512):
        study = tiny_study(tmp_path, data={"sequence_length": length})
        assert flops.num_masked_positions(study) == num_masked(study.data.mask_fraction, length)
