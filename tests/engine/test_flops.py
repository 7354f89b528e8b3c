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
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives import registry
from kd_megatron.schema import EncoderRecipe
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


@pytest.mark.parametrize("arm", ARMS)
def test_forward_flops_of_student_and_teacher(arm: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    path = str(write_teacher(tmp_path / "teacher", tmp_path / "tokenizer"))
    student, teacher_config = build_student(RECIPE, VOCAB_SIZE, {}, 0), model_config(path)
    options = registry.parse_options(ARMS[arm], where="test")
    objective = registry.build(options, shape_of(student.config), shape_of(teacher_config))
    taps = TappedEncoder(student, objective.needs_student)
    with torch.no_grad():
        forward = counted(lambda: multiply_out(taps(batch()))) + attention_flops(student.config, 2)
    ours = flops.student_flops(student.config, objective.needs_student, LENGTH, NUM_MASKED)
    unreached = 0.0
    if not objective.needs_student.head and 2 not in objective.needs_student.hidden:
        unreached = flops.layer_flops(student.config, LENGTH) - flops.projections_flops(student.config, LENGTH)
    assert ours == pytest.approx(3 * forward - 2 * unreached, rel=FLOPS_RELATIVE)
    if objective.needs_teacher is not None:
        teacher = load_teacher(path, torch.float32, objective.needs_teacher, torch.device("cpu"))
        num_layers = len(teacher.model.base_model.encoder.layer)
        expected = counted(lambda: multiply_out(teacher(batch()))) + attention_flops(teacher_config, num_layers)
        assert flops.teacher_flops(teacher_config, objective.needs_teacher, LENGTH, NUM_MASKED) == pytest.approx(
            expected, rel=FLOPS_RELATIVE
        )


@pytest.mark.parametrize("arm", ["scratch", "minilm"])
def test_backward_reaches_what_the_count_says(arm: str) -> None:
    """The counter sees the backward of every product but attention's; the layers' share is checked to the last one."""
    student = build_student(RECIPE, VOCAB_SIZE, {}, 0)
    options = registry.parse_options(ARMS[arm], where="test")
    objective = registry.build(options, shape_of(student.config), shape_of(student.config))
    encoder = TappedEncoder(student, objective.needs_student)

    def forward_and_backward() -> None:
        taps = encoder(batch())
        relations = [*taps.queries.values(), *taps.keys.values(), *taps.values.values()]
        outputs = relations if taps.logits is None else [taps.logits.dense()]
        torch.stack([output.sum() for output in outputs]).sum().backward()

    total = counted(forward_and_backward)
    config = student.config
    reached_attention_layers = 2 if arm == "scratch" else 1
    attention = attention_flops(config, 2) + 2 * attention_flops(config, reached_attention_layers)
    ours = flops.student_flops(config, objective.needs_student, LENGTH, NUM_MASKED)
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
