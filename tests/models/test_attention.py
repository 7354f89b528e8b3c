"""Attention without flash-attn, and clear words where that is asked for and cannot run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.data.loader import Loader
from kd_megatron.errors import ModelError
from kd_megatron.ledger import Ledger
from kd_megatron.models import layers, taps
from kd_megatron.models.build import build_student, load_teacher, model_config, shape_of
from kd_megatron.models.layers import attention
from kd_megatron.models.taps import Execution, TappedEncoder
from kd_megatron.objectives import of_arm
from kd_megatron.training.setup import freeze_untrained, special_ids
from kd_megatron.training.step import StudentWithObjective
from kd_megatron.training.teacher import Teacher


def test_sdpa_is_softmax_of_scaled_scores_without_padding() -> None:
    queries, keys, values = (torch.randn(2, 6, 3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., 4:] = False
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / 2.0
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, values)
    torch.testing.assert_close(attention("sdpa")(queries, keys, values, mask, 0.0), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_flash_without_a_gpu_is_refused() -> None:
    with pytest.raises(ModelError, match="without a GPU"):
        attention("flash")


def test_flash_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ModelError, match="flash-attn cannot be imported"):
        attention("flash")


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Execution:
    """flash-attn as it is on a GPU, but for its kernel: it takes half precision alone."""

    def kernel(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, dropout_p: float) -> torch.Tensor:
        assert queries.dtype == torch.bfloat16, "FlashAttention only support fp16 and bf16 data type"
        return layers.sdpa(queries, keys, values, None, dropout_p)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=kernel))
    with monkeypatch.context() as only_here:
        only_here.setattr(torch.cuda, "is_available", lambda: True)
        attend = attention("flash")
    monkeypatch.setattr("kd_megatron.models.taps.attention", lambda name: attend)
    return Execution("flash")


@pytest.mark.parametrize("arm", ARMS)
def test_the_dry_pass_in_float32_does_not_need_the_attention_of_training(
    tmp_path: Path, flash: Execution, arm: str
) -> None:
    study = tiny_study(write_inputs(tmp_path))
    loader, path = Loader(study.data, 0), str(tmp_path / "teacher")
    student = build_student(study.student, loader.vocab_size, special_ids(loader), seed=0)
    objective = of_arm.build(
        of_arm.parse_options(study.arms[arm], where=arm), shape_of(student.config), shape_of(model_config(path))
    )

    def untrained(execution: Execution) -> list[str]:
        encoder = TappedEncoder(student, objective.needs_student, execution=execution)
        needs, teacher = objective.needs_teacher, None
        if needs is not None:
            teacher = Teacher(load_teacher(path, torch.float32, needs, torch.device("cpu"), execution))
        attend = encoder.attend
        found = freeze_untrained(StudentWithObjective(encoder, objective, Ledger()), teacher, loader.batch(0, 2))
        assert encoder.attend is attend
        assert teacher is None or teacher.encoder.attend is attend
        student.requires_grad_(True)
        return found

    assert untrained(flash) == untrained(Execution())


def test_flash_in_float32_is_refused_and_runs_in_bfloat16(flash: Execution) -> None:
    queries, keys, values = (torch.randn(2, 6, 3, 4) for _ in range(3))
    attend = taps.attention(flash.attention)
    with pytest.raises(ModelError, match="flash in float32"):
        attend(queries, keys, values, None, 0.0)
    assert attend(queries.bfloat16(), keys.bfloat16(), values.bfloat16(), None, 0.0).dtype == torch.bfloat16
