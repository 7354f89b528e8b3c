"""The modelled step: counts of single operations by hand, of whole steps beside the ledger's, and what it prints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import needs_fake_cuda, prepared, steps
from tiny_study import write_inputs
from torch import Tensor
from torch.nn.functional import embedding

from benchmarks.kernels import bounds
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.model.fake_cuda import fake_cuda
from benchmarks.model.operations import Operation, Place, Recorder
from benchmarks.model.rates import MODELLED
from benchmarks.model.step_model import fused, time_of
from kd_megatron import errors
from kd_megatron.cli import main as cli
from kd_megatron.kernels.relation_kl import relation_kl
from kd_megatron.kernels.score_mse import score_mse
from kd_megatron.objectives.minilm import MiniLm

pytestmark = needs_fake_cuda
H200 = MODELLED["h200"]
M, N, K = 64, 48, 32


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("model"))


def recorded(compute: Callable[..., Any], *tensors: Tensor) -> list[Operation]:
    """What ``compute`` gives the device, of ``tensors`` moved there."""
    recorder = Recorder()
    with fake_cuda() as fake:
        there = [tensor.to("cuda") for tensor in tensors]
        fake.observers.append(recorder.observe)
        fake.launch_observers.append(recorder.observe_launch)
        compute(*there)
    return recorder.operations


def halves(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def out_of_the_wide(left: Tensor, right: Tensor, total: Tensor) -> None:
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def adam(weight: Tensor) -> None:
    weight.grad = torch.zeros_like(weight)
    torch.optim.AdamW([weight], fused=True).step()


@pytest.mark.parametrize(
    ("compute", "tensors", "num_bytes", "flops", "name"),
    [
        (torch.mm, (halves(M, K), halves(K, N)), 2 * (M * K + K * N + M * N), 2 * M * N * K, "mm"),
        (out_of_the_wide, (halves(M, K), halves(K, N), torch.zeros(M, N)), 2 * (M * K + K * N) + 8 * M * N,
         2 * M * N * K, "addmm"),
        (torch.add, (halves(M, N), halves(M, N)), 6 * M * N, 0, "add"),
        (Tensor.add_, (halves(M, N), halves(M, N)), 6 * M * N, 0, "add_"),
        (Tensor.copy_, (halves(M, N), torch.zeros(M, N)), 6 * M * N, 0, "copy_"),
        (Tensor.zero_, (halves(M, N),), 2 * M * N, 0, "zero_"),
        (lambda row: row.expand(M, N).sum(), (torch.zeros(N),), 4 * N + 4, 0, "sum"),
        (lambda ids, rows: embedding(ids, rows), (torch.zeros(K, dtype=torch.int64), torch.zeros(1000, N)),
         8 * K + 2 * 4 * K * N, 0, "embedding"),
        (adam, (torch.zeros(M, N),), 28 * M * N, 0, "_fused_adamw_"),
    ],
)  # fmt: skip
def test_bytes_and_flops_of_one_operation(
    compute: Callable[..., Any], tensors: tuple[Tensor, ...], num_bytes: float, flops: float, name: str
) -> None:
    (operation,) = [one for one in recorded(compute, *tensors) if one.name == name]
    assert operation.num_bytes == pytest.approx(num_bytes, rel=0.01)  # Adam reads its step and flags too
    assert operation.flops == flops
    assert operation.launches == 1


def test_views_start_nothing() -> None:
    assert recorded(lambda one: one.view(-1)[3:].unsqueeze(0).expand(4, -1), torch.zeros(M, N)) == []


def test_an_operation_takes_the_longest_of_its_limits() -> None:
    (small,) = recorded(torch.add, torch.zeros(2), torch.zeros(2))
    assert (time_of(small, H200).seconds, time_of(small, H200).limit) == (2.5e-6, "launches")
    (wide,) = recorded(torch.add, torch.zeros(4096, 4096), torch.zeros(4096, 4096))
    assert time_of(wide, H200).limit == "bytes"
    assert time_of(wide, H200).seconds == pytest.approx(3 * 4 * 4096**2 / 4.3e12)
    (half,) = recorded(torch.mm, halves(4096, 4096), halves(4096, 4096))
    assert time_of(half, H200).limit == "FLOPs"
    assert time_of(half, H200).seconds == pytest.approx(2 * 4096**3 / 650e12)
    (full,) = recorded(torch.mm, torch.zeros(4096, 4096), torch.zeros(4096, 4096))
    assert time_of(full, H200).seconds == pytest.approx(2 * 4096**3 / (66.9e12 * 650 / 989.4))


def kernels_of(loss: Callable[..., Tensor], heads: tuple[int, int], num_taps: int, length: int = 16) -> list[Operation]:
    shape = (2, length, *heads)
    students = [halves(*shape) for _ in range(num_taps)]

    def compute(*taps: Tensor) -> None:
        student = [tap.requires_grad_() for tap in taps[:num_taps]]
        loss(student, taps[num_taps:]).sum().backward()

    return [one for one in recorded(compute, *students, *[halves(*shape) for _ in students]) if one.kind == "kernel"]


def test_relation_kernels_declare_what_their_bound_counts() -> None:
    launches = kernels_of(lambda s, t: relation_kl(s, t, 8), (4, 16), num_taps=3, length=160)
    case = RelationKl(batch=2, length=160, student_heads=(4, 16), teacher_heads=(4, 16), num_relation_heads=8)
    expected = bounds.cost(case)
    assert [one.name for one in launches] == ["relation_kl_forward", "relation_kl_backward"]
    assert sum(one.flops for one in launches) == expected.flops
    assert sum(one.exponentials for one in launches) == expected.exponentials
    assert sum(one.num_bytes for one in launches) >= expected.bytes  # and the statistics between the two


def test_the_relation_kernel_of_short_sequences_declares_what_it_computes_once() -> None:
    (launch,) = kernels_of(lambda s, t: relation_kl(s, t, 8), (4, 16), num_taps=3)
    entries, head_size = 3 * 2 * 8 * 16**2, 8
    assert launch.name == "relation_kl_whole"
    assert launch.flops == 2.0 * entries * 4 * head_size  # two scores, and two products of G with X
    assert launch.exponentials == 2.0 * entries
    numbers = 3 * 2 * 16 * 64
    assert launch.num_bytes == numbers * (2 + 2 + 4) + 4 * 3 * 2 * 8  # taps, gradients and divergences in float32


def test_score_kernels_declare_their_tiles() -> None:
    launches = kernels_of(lambda s, t: score_mse(*s, *t, backend="triton"), (4, 16), num_taps=2)
    case = ScoreMse(batch=2, length=16, student_heads=(4, 16), teacher_heads=(4, 16))
    assert [one.name for one in launches] == ["score_tiles", "score_tiles"]
    # The bound is of scores that serve both gradients; two launches make them twice.
    scores = 2.0 * 2 * 4 * 16**2 * (16 + 16)
    assert sum(one.flops for one in launches) == bounds.cost(case).flops + scores


def operations_of_a_step(inputs: Path, directory: Path, arm: str, **sections: Any) -> tuple[Recorder, Any]:
    recorder = Recorder()
    sections = {"training": {"precision": "bf16"}, "teacher": {"precision": "bf16"}} | sections
    with fake_cuda() as fake, prepared(inputs, directory, arm, **sections) as run:
        steps(fake, run, 1)
        fake.observers.append(recorder.observe)
        fake.launch_observers.append(recorder.observe_launch)
        steps(fake, run, 1)
        return recorder, run.cost


@pytest.mark.parametrize("arm", ["scratch", "vanilla_kd", "minilm", "tinybert"])
def test_products_of_a_step_are_those_that_the_ledger_charges(inputs: Path, tmp_path: Path, arm: str) -> None:
    recorder, cost = operations_of_a_step(inputs, tmp_path, arm)
    found = sum(one.flops for one in recorder.operations if one.kind == "products" and one.part != "score loss")
    found += sum(one.flops for one in recorder.operations if one.kind == "attention" and "backward" not in one.name)
    # FlashAttention's backward makes its scores again, five products for two: the ledger counts what is needed, four.
    found += 4 / 5 * sum(one.flops for one in recorder.operations if one.name.endswith("attention_backward"))
    assert found == pytest.approx(8 * (cost.student + cost.teacher), rel=1e-6)
    assert recorder.undeclared == set(), "a Triton kernel without a cost: add it to cost.py of its package"


def test_every_part_of_a_step_has_its_name(inputs: Path, tmp_path: Path) -> None:
    recorder, _ = operations_of_a_step(inputs, tmp_path, "vanilla_kd")
    parts = {one.part for one in recorder.operations}
    assert parts >= {"products", "attention", "vocabulary loss", "norms and elementwise", "optimiser", "embeddings"}
    backward = [one for one in recorder.operations if one.name == "native_layer_norm_backward"]
    assert (
        sum(one.place.layer is not None for one in backward) == 2 * 2 * 2
    )  # of two layers' two norms, in two micro-batches
    assert len(backward) == (2 * 2 + 2) * 2  # the others are the embeddings' and the head's
    of_teacher = [one for one in recorder.operations if one.place.is_teacher]
    assert {one.part for one in of_teacher} <= {"products", "attention", "norms and elementwise", "embeddings"}
    assert len(of_teacher) > 50
    assert recorder.undeclared == set()


def operation(
    name: str, reads: dict[int, float], writes: dict[int, float], kind: str = "elementwise", layer: int = 1
) -> Operation:
    place = Place(None, is_teacher=False, layer=layer)
    moved = sum(reads.values()) + sum(writes.values())
    return Operation(name, kind, place, "", moved, 0.0, 0.0, 1, 2, [*reads.items()], [*writes.items()])


def test_a_chain_reads_once_and_writes_what_is_read_later() -> None:
    chain = [
        operation("add", {1: 10.0, 2: 10.0}, {3: 10.0}),
        operation("gelu", {3: 10.0}, {4: 10.0}),
        operation("dropout", {4: 10.0}, {5: 10.0, 6: 5.0}),
    ]
    product = operation("mm", {5: 10.0}, {7: 10.0}, kind="products")
    backward = operation("gelu_backward", {3: 10.0, 7: 10.0}, {8: 10.0})
    first, middle, last = fused([*chain, product, backward])
    # 1 and 2 are read; 3 is read by the backward, 5 by the product, 6 by nobody so far: 4 alone stays inside.
    assert first.num_bytes == 20.0 + 10.0 + 10.0 + 5.0
    assert first.launches == 1
    assert (middle, last) == (product, backward)


def test_a_chain_waits_for_what_comes_later() -> None:
    """Gradients of three projections are added up one by one, with products between the sums."""
    operations = [
        operation("add", {1: 10.0, 2: 10.0}, {3: 10.0}),
        operation("mm", {9: 10.0}, {4: 10.0}, kind="products"),
        operation("add", {3: 10.0, 4: 10.0}, {5: 10.0}),
        operation("mm", {5: 10.0}, {6: 10.0}, kind="products"),
    ]
    names = [one.name for one in fused(operations)]
    assert names == ["mm", "fused: add", "mm"]
    assert fused(operations)[1].num_bytes == 30.0 + 10.0


def test_chains_end_at_layers() -> None:
    operations = [operation("add", {1: 10.0}, {2: 10.0}), operation("gelu", {2: 10.0}, {3: 10.0}, layer=2)]
    assert fused(operations) == operations


def test_fusion_leaves_products_alone(inputs: Path, tmp_path: Path) -> None:
    recorder, _ = operations_of_a_step(inputs, tmp_path, "minilm")
    whole, less = recorder.operations, fused(recorder.operations)
    assert sum(one.flops for one in less) == sum(one.flops for one in whole)
    assert sum(one.num_bytes for one in less) < sum(one.num_bytes for one in whole)
    kinds = [[one.name for one in operations if one.kind != "elementwise"] for operations in (less, whole)]
    assert kinds[0] == kinds[1]


def small_recipe(inputs: Path, directory: Path) -> Path:
    recipe = directory / "small.yaml"
    recipe.write_text(
        f"""
kind: study
name: small
data: {{shards: [{{path: {inputs / "shards"}}}], sequence_length: 16}}
teacher: {{path: {inputs / "teacher"}}}
student: {{hidden_size: 32, num_layers: 2, num_attention_heads: 4, intermediate_size: 64, max_positions: 64}}
arms:
  scratch: {{objective: scratch}}
  minilm: {{objective: minilm, num_relation_heads: 4}}
budget: {{tokens: 4096}}
training: {{global_batch_size: 8, micro_batch_size: 8, learning_rate: 1.0e-3, tensorboard: false}}
validation: {{num_samples: 8, probe_windows: 16}}
"""
    )
    return recipe


def modelled(recipe: Path, *arguments: str) -> dict[str, Any]:
    file = recipe.with_suffix(".json")
    assert cli.main(["bench", "model", str(recipe), "--json", str(file), *arguments]) == 0
    return json.loads(file.read_text())


def test_the_command_prints_and_writes(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = modelled(small_recipe(inputs, tmp_path), "--device", "h200", "--top", "2", "--micro-batch", "3")
    assert record["batch"]["micro_batch_size"] == 2  # the largest that divides 8
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("modelled, not measured", "where the modelled milliseconds go", "times bound", "at equal MFU",
                  "no kernel ran, and nothing was timed", "NVIDIA H200 data sheet"):  # fmt: skip
        assert words in shown
    assert record["modelled"] is True
    assert "rows" not in record  # what other commands take for measured figures
    scratch, minilm = record["arms"]
    assert (scratch["arm"], scratch["speed"], minilm["arm"]) == ("scratch", 1.0, "minilm")
    for arm in record["arms"]:
        assert sum(arm["parts_ms"].values()) == pytest.approx(arm["modelled_ms"], rel=1e-2)
        assert arm["times_bound"] == pytest.approx(1 / arm["mfu"], rel=0.05)
        assert len(arm["top"]) == 2
    assert minilm["teacher_ms"] > scratch["teacher_ms"] == 0.0
    assert not any("declare no cost" in line for line in record["assumptions"])


def test_of_a_schedule_the_first_phase_is_modelled(inputs: Path, tmp_path: Path) -> None:
    phases = "phases: [{until: 0.5, objective: scratch}, {until: 1.0, objective: minilm, num_relation_heads: 4}]"
    record = modelled(small_recipe(inputs, tmp_path), f"arms.both={{objective: schedule, {phases}}}")
    scratch, _, both = record["arms"]
    assert both["modelled_ms"] == scratch["modelled_ms"]
    assert "Of a schedule the first phase is modelled: both." in record["assumptions"]


def test_compiled_layers_are_modelled_as_fewer_kernels(inputs: Path, tmp_path: Path) -> None:
    recipe = small_recipe(inputs, tmp_path)
    eager, compiled = (modelled(recipe, f"training.compile={flag}") for flag in ("false", "true"))
    for before, after in zip(eager["arms"], compiled["arms"], strict=True):
        assert after["launches"] < before["launches"]
        assert after["flop_bound_ms"] == before["flop_bound_ms"]
    assert any("modelled, not run" in line for line in compiled["assumptions"])


def test_an_arm_whose_code_is_slow_stands_out(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(inputs, tmp_path)
    before = modelled(recipe)
    forward = MiniLm.forward

    def slow(self: Any, student: Any, teacher: Any, batch: Any) -> dict[str, Tensor]:
        for tap in teacher.queries.values():
            for _ in range(100):
                tap.clone()
        return forward(self, student, teacher, batch)

    monkeypatch.setattr(MiniLm, "forward", slow)
    after = modelled(recipe)
    (scratch, minilm), (scratch_after, minilm_after) = before["arms"], after["arms"]
    assert scratch_after["modelled_ms"] == scratch["modelled_ms"]
    assert minilm_after["speed"] < 0.95 * minilm["speed"]
    assert minilm_after["parts_ms"]["bookkeeping"] > minilm["parts_ms"]["bookkeeping"] + 0.2  # 100 launches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h20"], "did you mean 'h200'?"),
        (["--micro-batch", "0"], "--micro-batch 0"),
        (["--top", "-1"], "--top -1"),
        (["training.ds_config=zero3"], "DeepSpeed reads the device there"),
        (["teacher.partition=true"], "teacher.partition"),
        (["teacher.cache={path: somewhere}"], "teacher.cache"),
    ],
)
def test_bad_arguments(
    inputs: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(inputs, tmp_path)
    assert cli.main(["bench", "model", str(recipe), *arguments]) == errors.RecipeError.exit_code
    assert message in capsys.readouterr().err
