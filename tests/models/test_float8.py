"""The float8 teacher: its arithmetic against float64, its taps against bfloat16's, and clear refusals."""

import copy
from pathlib import Path

import pytest
import torch
from small_shards import VOCAB_SIZE, write_tokenizer
from tiny_study import tiny_study, write_inputs, write_teacher
from tolerances import FLOAT8_PRODUCT_RELATIVE

from kd_megatron.errors import ModelError
from kd_megatron.models import float8, float8_linear
from kd_megatron.models.build import load_teacher
from kd_megatron.models.float8_linear import Float8Linear, outputs_of, quantise
from kd_megatron.models.layers import RELATIONS, layers_of, project
from kd_megatron.tensors import Batch, Needs
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
    outputs = Float8Linear(linear)(inputs)
    rows, row_scales = quantise(inputs.flatten(0, 1))
    weight, weight_scales = quantise(linear.weight.detach())
    exact = (rows.double() * row_scales) @ (weight.double() * weight_scales).T + linear.bias.double()
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.flatten(0, 1).double(), exact, rtol=FLOAT8_PRODUCT_RELATIVE, atol=1e-6)
    relative = (outputs - linear(inputs)).double().norm() / linear(inputs).double().norm()
    assert 0.005 < relative < 0.06, "float8 has an error, and not a large one"


def test_zeros_stay_zeros() -> None:
    rows, scales = quantise(torch.zeros(2, 16))
    assert not (rows.float() * scales).any()


def test_a_converted_teacher_is_close_and_all_its_layers_are_float8(teacher_path: str) -> None:
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    errors = float8.convert(teacher, batch())
    assert 0.0 < errors.used < float8.LARGEST_ERROR
    assert 0.0 < errors.sums_in_float32 < float8.LARGEST_ERROR
    assert all(layer.fast for layer in teacher.model.modules() if isinstance(layer, Float8Linear))
    kinds = [type(module) for layer in teacher.model.base_model.encoder.layer for module in layer.modules()]
    assert kinds.count(Float8Linear) == 4 * 6
    assert torch.nn.Linear not in kinds


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


def test_both_ways_of_summing_are_compared_with_the_same_teacher(
    teacher_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor both give the same sums: here the fast one is made to differ."""
    product, ways = float8_linear._product, []

    def counted(*arguments: object) -> torch.Tensor:
        ways.append(arguments[-1])
        made = product(*arguments)
        return made * 1.01 if arguments[-1] else made

    monkeypatch.setattr(float8_linear, "_product", counted)
    errors = float8.convert(load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU), batch())
    assert ways.count(True) == ways.count(False) == 4 * 6
    assert errors.used > errors.sums_in_float32


def test_layers_of_one_input_round_it_once(teacher_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher(teacher_path, torch.bfloat16, NEEDS, CPU)
    float8.convert(teacher, batch())
    layer = layers_of(teacher.model.base_model)[0]
    states = torch.randn(2, 16, 32).to(torch.bfloat16)
    own = layer.attention.self
    apart = [module(states).unflatten(-1, (4, 8)) for module in (own.query, own.key, own.value)]
    rounded: list[torch.Size] = []
    monkeypatch.setattr(float8_linear, "quantise", lambda rows: rounded.append(rows.shape) or quantise(rows))
    together = project(layer, states, RELATIONS)
    assert len(rounded) == 1
    assert all(torch.equal(one, other) for one, other in zip(together.values(), apart, strict=True))
    rounded.clear()
    teacher(batch())
    assert len(rounded) == 4 * 4, "of a layer's six inputs three are one"
    mixed = [own.query, torch.nn.Linear(32, 8).to(torch.bfloat16)]
    assert [made.shape[-1] for made in outputs_of(mixed, states)] == [32, 8]


def test_a_run_with_a_float8_teacher(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    teacher = {"path": str(inputs / "teacher")}
    losses = {}
    for precision in ("bf16", "fp8"):
        study = tiny_study(inputs, teacher=teacher | {"precision": precision}, budget={"tokens": 4 * 8 * 16})
        summary = pretrain(study, "minilm", 0, tmp_path / precision, str(inputs / "teacher"))
        losses[precision] = summary["validation"]["probe_mlm_loss"]
        errors = summary["teacher"]["float8_errors"]
        assert errors is None if precision == "bf16" else 0.0 < errors["used"] < float8.LARGEST_ERROR
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.02)
    assert losses["fp8"] != losses["bf16"]
