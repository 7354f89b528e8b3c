"""The float8 teacher: its arithmetic against float64, its taps against bfloat16's, and clear refusals."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_shards import VOCAB_SIZE, write_tokenizer
from tiny_study import tiny_study, write_inputs, write_teacher
from tolerances import FLOAT8_PRODUCT_RELATIVE

from kd_megatron.errors import ModelError
from kd_megatron.models import float8
from kd_megatron.models.build import load_teacher
from kd_megatron.models.layers import project, project_each
from kd_megatron.tensors import RELATIONS, Batch, Needs
from kd_megatron.training.run import pretrain

CPU = torch.device("cpu")
NEEDS = Needs(queries=(4,), keys=(4,), values=(4,), hidden=(0, 2, 4), logits=True)


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("teacher")
    write_tokenizer(directory / "tokenizer")
    return str(write_teacher(directory / "teacher", directory / "tokenizer", initializer_range=0.05))


def batch() -> Batch:
    ids = torch.randint(5, VOCAB_SIZE, (2, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3).repeat(2, 1)
    return Batch(ids, ids, None, positions, ids[:, :3], torch.arange(2))


def test_a_layer_multiplies_the_rounded_numbers_exactly() -> None:
    """Against float64 on the same float8 numbers: what is left is float32 sums and the bfloat16 of the result."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).to(torch.bfloat16)
    inputs = (torch.randn(2, 5, 64) * torch.logspace(-3, 3, 5)[:, None]).to(torch.bfloat16)  # scales are per token
    outputs = float8.Float8Linear(linear)(inputs)
    rows, row_scales = float8.quantise(inputs.flatten(0, 1))
    weight, weight_scales = float8.quantise(linear.weight.detach())
    exact = (rows.double() * row_scales) @ (weight.double() * weight_scales).T + linear.bias.double()
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.flatten(0, 1).double(), exact, rtol=FLOAT8_PRODUCT_RELATIVE, atol=1e-6)
    relative = (outputs - linear(inputs)).double().norm() / linear(inputs).double().norm()
    assert 0.005 < relative < 0.06, "float8 has an error, and not a large one"


def test_zeros_stay_zeros() -> None:
    rows, scales = float8.quantise(torch.zeros(2, 16))
    assert not (rows.float() * scales).any()


def test_a_converted_teacher_is_close_and_all_its_layers_are_float8(teacher_path: str) -> None:
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    errors = float8.convert(teacher, batch())
    assert 0.0 < errors.largest < float8.LARGEST_ERROR
    assert errors.is_fast
    assert "fast it is" in errors.in_words
    kinds = [type(module) for layer in teacher.model.base_model.encoder.layer for module in layer.modules()]
    assert kinds.count(float8.Float8Linear) == 4 * 6
    assert torch.nn.Linear not in kinds


def test_fast_accumulation_is_left_where_it_costs(teacher_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU sums alike either way: a fast sum of fewer bits is planted."""
    true = torch.nn.functional.scaled_mm
    asked: list[bool] = []

    def planted(*arguments: Any, use_fast_accum: bool, **options: Any) -> torch.Tensor:
        asked.append(use_fast_accum)
        return true(*arguments, **options) * (1.05 if use_fast_accum else 1.0)

    monkeypatch.setattr(float8, "scaled_mm", planted)
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    errors = float8.convert(teacher, batch())
    assert errors.fast > errors.exact + float8.LARGEST_COST_OF_SPEED
    assert not errors.is_fast
    assert "float32 it is" in errors.in_words
    assert set(asked) == {False, True}
    asked.clear()
    teacher(batch())
    assert set(asked) == {False}


def test_queries_keys_and_values_share_one_rounding_of_their_input(
    teacher_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    float8.convert(teacher, batch())
    true, calls = float8.quantise, []

    def counted(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(rows)
        return true(rows)

    monkeypatch.setattr(float8, "quantise", counted)
    taps = teacher(batch())
    assert len(calls) == 4 * 4  # of each layer: one for the projections, one for each of its three other products
    layer, states = teacher.model.base_model.encoder.layer[3], torch.randn(2, 16, 32).bfloat16()
    together = project_each(layer, states, RELATIONS)
    for relation, projected in zip(RELATIONS, together, strict=True):
        assert torch.equal(projected, project(layer, states, relation))
    assert taps.queries[4].shape == together[0].shape


def test_a_teacher_too_uneven_for_float8_is_refused(teacher_path: str) -> None:
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    spoilt = copy.deepcopy(teacher)
    with torch.no_grad():  # one feature so large that all others of its row round to nothing
        spoilt.model.base_model.encoder.layer[2].output.LayerNorm.weight[0] = 3e5
        spoilt.model.base_model.encoder.layer[3].attention.self.query.weight[:, 0] = 0.0
    with pytest.raises(ModelError, match="fp8: a tap that differs"):
        float8.convert(spoilt, batch())


def test_sizes_that_float8_cannot_take_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    path = str(write_teacher(tmp_path / "teacher", tmp_path / "tokenizer", intermediate_size=40))
    with pytest.raises(ModelError, match="32 x 40"):
        float8.convert(load_teacher(path, torch.bfloat16, NEEDS, CPU), batch())


def test_a_run_with_a_float8_teacher(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    teacher = {"path": str(inputs / "teacher")}
    losses = {}
    for precision in ("bf16", "fp8"):
        study = tiny_study(inputs, teacher=teacher | {"precision": precision}, budget={"tokens": 4 * 8 * 16})
        summary = pretrain(study, "minilm", 0, tmp_path / precision, str(inputs / "teacher"))
        losses[precision] = summary["validation"]["probe_mlm_loss"]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.02)
    assert losses["fp8"] != losses["bf16"]
