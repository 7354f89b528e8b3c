"""Layers that are run again in the backward pass: the same losses and gradients bit for bit, in less memory."""

from pathlib import Path

import pytest
import torch
from curves import Curve, curve, largest_difference
from recording import record
from small_shards import VOCAB_SIZE
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import COMPILED_200_STEPS_RELATIVE

from kd_megatron.models.build import build_student
from kd_megatron.models.taps import Execution, TappedEncoder
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.tensors import Batch, Needs

NUM_STEPS = 6
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def train(inputs: Path, directory: Path, arm: str, **training: object) -> Curve:
    study = tiny_study(inputs, arms={arm: ARMS[arm]}, student=DROPOUT, training={"micro_batch_size": 4, **training})
    return curve(study, arm, directory, inputs / "teacher", NUM_STEPS, rate=1e-3)


@pytest.mark.parametrize("stops", [True, False], ids=["stops", "whole"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_curve_is_the_same_bit_for_bit(inputs: Path, arm: str, stops: bool, tmp_path: Path) -> None:
    def of(recomputes: bool) -> Curve:
        options = {"stop_at_last_tap": stops, "activation_checkpointing": recomputes}
        return train(inputs, tmp_path / str(recomputes), arm, **options)

    assert of(True) == of(False)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_the_curve_is_the_same_at_every_stage(inputs: Path, stage: str, tmp_path: Path) -> None:
    def of(recomputes: bool) -> Curve:
        options = {"ds_config": stage, "activation_checkpointing": recomputes}
        return train(inputs, tmp_path / str(recomputes), "minilm", **options)

    assert of(True) == of(False)


@pytest.mark.long
@pytest.mark.parametrize("arm", ["scratch", "minilm"])
def test_compiled_layers_are_run_again_too(inputs: Path, arm: str, tmp_path: Path) -> None:
    """Without dropout, whose numbers compiled code draws otherwise."""

    def of(name: str, **training: object) -> Curve:
        study = tiny_study(inputs, arms={arm: ARMS[arm]}, training=training)
        return curve(study, arm, tmp_path / name, inputs / "teacher", NUM_STEPS, rate=1e-3)

    compiled = of("compiled", compile=True, activation_checkpointing=True)
    assert largest_difference(of("plain"), compiled) <= COMPILED_200_STEPS_RELATIVE


@pytest.mark.parametrize("needs", [Needs(hidden=(6,)), Needs(queries=(6,))], ids=["top", "within the last"])
def test_memory_falls(needs: Needs) -> None:
    """Of six layers, what one keeps instead of what six keep."""
    recipe = EncoderRecipe(
        hidden_size=32, num_layers=6, num_attention_heads=4, intermediate_size=128, max_positions=64, **DROPOUT
    )
    ids = torch.full((4, 64), 7)
    batch = Batch(ids, ids, None, ids[:, :4], ids[:, :4], torch.arange(4))

    def peak(recomputes: bool) -> int:
        student = build_student(recipe, VOCAB_SIZE, {}, 0)
        encoder = TappedEncoder(student, needs, execution=Execution(recompute=recomputes)).train()
        for parameter in encoder.parameters():
            parameter.grad = torch.zeros_like(parameter)  # what is measured is what layers keep

        def forward_and_backward() -> None:
            taps = encoder(batch)
            (tap,) = (*taps.hidden.values(), *taps.queries.values())
            tap.square().sum().backward()

        return record(forward_and_backward).peak_bytes

    assert peak(True) < 0.5 * peak(False)
