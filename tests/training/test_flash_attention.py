"""Runs by flash-attn: what comes before the first step takes its float32 weights, and nothing else does."""

from pathlib import Path

import pytest
import torch
from curves import curve
from tiny_study import tiny_study, write_inputs
from torch import Tensor

from kd_megatron.errors import RecipeError
from kd_megatron.models import taps
from kd_megatron.models.layers import sdpa
from kd_megatron.training.setup import execution


def halves_alone(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Stands for flash-attn, which takes numbers of 16 bits alone."""
    assert queries.dtype == torch.bfloat16, f"flash-attn does not take {queries.dtype}"
    return sdpa(queries, keys, values, mask, dropout)


@pytest.mark.parametrize("arm", ["scratch", "minilm"])
@pytest.mark.parametrize("ds_config", ["zero0", "zero1"])
def test_a_run_by_flash_attention_begins_and_trains(
    arm: str, ds_config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step the student's weights are float32; they were once put through flash-attn as they are."""
    monkeypatch.setattr(taps, "attention", {"flash": halves_alone}.__getitem__)
    inputs = write_inputs(tmp_path)
    training = {"attention": "flash", "precision": "bf16", "ds_config": ds_config}
    study = tiny_study(inputs, training=training, teacher={"precision": "bf16"})
    rows = curve(study, arm, tmp_path / "run", inputs / "teacher", 3, rate=1e-3)
    assert len(rows) == 3


@pytest.mark.parametrize(("training", "teacher"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_flash_attention_in_float32_is_refused_before_anything_is_built(training: str, teacher: str) -> None:
    study = tiny_study(Path(), training={"attention": "flash", "precision": training}, teacher={"precision": teacher})
    with pytest.raises(RecipeError, match="flash-attn computes in 16 bits alone"):
        execution(study)
