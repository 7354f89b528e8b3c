"""What one step does: normalisation, non-finite values, what is frozen, what is charged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import PARITY_BF16_RELATIVE, PARITY_FLOAT32_RELATIVE

from kd_megatron.engine.batch_split import smaller_than_asked, split
from kd_megatron.errors import ModelError, NonFiniteError, RecipeError
from kd_megatron.ranks import dist
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.recipe import TrainingRecipe
from kd_megatron.tensors import IGNORED, Batch
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import Run, prepare_run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist.initialise()
    return write_inputs(tmp_path_factory.mktemp("step"))


class Direct:
    """Batches without a prefetch thread."""

    def __init__(self, run: Run) -> None:
        self.get = run.micro_batches


def make_run(inputs: Path, directory: Path, arm: str, **changes: Any) -> Run:
    return prepare_run(tiny_study(inputs, **changes), arm, 0, directory, str(inputs / "teacher"))


def step(run: Run, rate: float = 1e-3) -> Any:
    return one_step(run, Direct(run), rate, StopRequest())


def snapshot(run: Run) -> dict[str, torch.Tensor]:
    return run.engine.full_weights()


def test_minilm_freezes_what_it_gives_no_gradient_and_nothing_else_stays_still(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "minilm", training={"ds_config": "zero2", "precision": "bf16"})
    before = snapshot(run)
    for _ in range(3):
        step(run)
        charge(run)
    after = snapshot(run)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == set(run.place.never_trained)
    top = "student.model.bert.encoder.layer.1."
    assert {name for name in still if name.startswith(top)} == {
        name for name in before if name.startswith((top + "attention.output", top + "intermediate", top + "output"))
    }
    assert all(name.startswith((top, "student.model.cls.")) for name in still)


@pytest.mark.parametrize("arm", ["scratch", "vanilla_kd"])
def test_objectives_with_a_head_train_everything(inputs: Path, tmp_path: Path, arm: str) -> None:
    assert make_run(inputs, tmp_path, arm).place.never_trained == []


def test_tinybert_trains_its_projection(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "tinybert")
    before = snapshot(run)
    step(run)
    after = snapshot(run)
    moved = [name for name in after if name.startswith("objective.") and not torch.equal(before[name], after[name])]
    assert moved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ds_config", ["zero0", "zero1", "zero2", "zero3"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(
    inputs: Path, tmp_path: Path, precision: str, ds_config: str
) -> None:
    run = make_run(inputs, tmp_path, "scratch", training={"precision": precision, "ds_config": ds_config})
    step(run)
    before = snapshot(run)

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, float("nan"))

    weight = run.module.student.model.bert.encoder.layer[0].output.dense.weight
    if ds_config == "zero3":  # the parameter is partitioned: poison what flows into it instead
        module = run.module.student.model.bert.encoder.layer[0].output.dense
        module.register_full_backward_hook(lambda _m, grads, _o: tuple(None if g is None else poison(g) for g in grads))
    else:
        weight.register_hook(poison)
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        step(run)
    after = snapshot(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", PARITY_FLOAT32_RELATIVE), ("bf16", PARITY_BF16_RELATIVE)]
)
def test_every_stage_clips_alike(inputs: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    """By us at stages 0 to 2, by DeepSpeed at stage 3."""
    weights, norms = {}, {}
    for stage in ("zero0", "zero1", "zero2", "zero3"):
        training = {"ds_config": stage, "precision": precision, "gradient_clipping": 0.05, "epsilon": 1e-2}
        run = make_run(inputs, tmp_path / stage, "scratch", training=training)
        first = snapshot(run)
        for _ in range(2):
            step(run, rate=0.1)
            charge(run)
        norms[stage] = run.step.read().grad_norm
        weights[stage] = torch.cat([(after - first[name]).flatten() for name, after in snapshot(run).items()])
    assert min(norms.values()) > 0.5  # ten times the limit
    for stage, moved in weights.items():
        assert norms[stage] == pytest.approx(norms["zero3"], rel=tolerance)
        assert (moved - weights["zero3"]).norm() <= tolerance * moved.norm(), stage


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "scratch")
    with torch.no_grad():
        run.module.student.model.cls.predictions.bias[7] = float("inf")
    before = snapshot(run)
    with pytest.raises(NonFiniteError, match=r"step 1 \(samples 0-7 on rank 0\): loss term mlm"):
        step(run)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(run).items())


def test_the_teacher_never_changes_and_stays_in_eval_mode(inputs: Path, tmp_path: Path) -> None:
    run = make_run(inputs, tmp_path, "tinybert")
    teacher = run.step.teacher
    assert teacher is not None
    before = {name: value.clone() for name, value in teacher.encoder.state_dict().items()}
    step(run)
    assert all(torch.equal(value, before[name]) for name, value in teacher.encoder.state_dict().items())
    assert not any(module.training for module in teacher.encoder.modules())
    teacher.encoder.train()
    with pytest.raises(RuntimeError, match="left eval mode"):
        step(run)


@pytest.mark.parametrize("arm", ARMS)
def test_flops_and_tokens_are_charged_per_step(inputs: Path, tmp_path: Path, arm: str) -> None:
    run = make_run(inputs, tmp_path, arm)
    for _ in range(2):
        step(run)
        charge(run)
    assert run.ledger.tokens == 2 * 8 * 16
    for account in ("student", "teacher", "loss"):
        assert run.ledger.accounts[account].flops == pytest.approx(2 * 8 * getattr(run.cost, account))
        assert (run.ledger.accounts[account].seconds > 0) == (account != "teacher" or arm != "scratch")


def test_all_arms_read_the_same_batches_from_the_same_first_weights(inputs: Path, tmp_path: Path) -> None:
    runs = [make_run(inputs, tmp_path / arm, arm) for arm in ARMS]
    for other in runs[1:]:
        for one, two in zip(runs[0].micro_batches(3), other.micro_batches(3), strict=True):
            assert torch.equal(one.input_ids, two.input_ids)
            assert torch.equal(one.labels, two.labels)
        first, second = snapshot(runs[0]), snapshot(other)
        shared = [name for name in first if name.startswith("student.")]
        assert all(torch.equal(first[name], second[name]) for name in shared)


def test_targets_weigh_alike_however_unequally_a_batch_is_split(inputs: Path, tmp_path: Path) -> None:
    """A mean of micro-batches' means would give a target more weight where there are few."""
    found = {}
    for size in (8, 4, 1):
        run = make_run(inputs, tmp_path / str(size), "vanilla_kd", training={"micro_batch_size": size})
        batches = [thinned(batch) for batch in run.micro_batches(0)]
        counts = {int((batch.labels != IGNORED).sum()) for batch in batches}
        assert len(counts) == min(2, len(batches))  # they differ, where there are several
        run.step.run(batches, 1e-3, False)
        reading = run.step.read()
        found[size] = {**reading.sums, **reading.counts, "grad_norm": reading.grad_norm}
    for size in (4, 1):
        assert found[size] == pytest.approx(found[8], rel=PARITY_FLOAT32_RELATIVE)


def thinned(batch: Batch) -> Batch:
    """One target in each of the first half of the samples, and all of them in the others."""
    few = (batch.sample_ids < 4)[:, None] & (torch.arange(batch.labels.shape[1]) > 0)
    return replace(batch, labels=batch.labels.masked_fill(few, IGNORED))


def test_micro_batches_are_the_largest_that_divide_the_share_of_a_process() -> None:
    def sizes(batch: int, micro_batch: int, num_processes: int) -> tuple[int, int]:
        recipe = TrainingRecipe(global_batch_size=batch, micro_batch_size=micro_batch)
        found = split(recipe, num_processes)
        return found.size, found.count

    assert sizes(1024, 256, 4) == (256, 1)
    assert sizes(1024, 256, 8) == (128, 1)
    assert sizes(1024, 256, 1) == (256, 4)
    assert sizes(12, 5, 1) == (4, 3)
    assert sizes(7, 5, 1) == (1, 7)
    with pytest.raises(RecipeError, match="global_batch_size 1024 on 3 processes"):
        sizes(1024, 256, 3)


def test_smaller_micro_batches_than_asked_are_told_of() -> None:
    def told(batch: int, micro_batch: int, num_processes: int) -> str:
        recipe = TrainingRecipe(global_batch_size=batch, micro_batch_size=micro_batch)
        return smaller_than_asked(recipe, num_processes)

    assert told(1024, 256, 4) == told(1024, 256, 8) == ""  # the whole share at once is what was asked for
    assert told(12, 5, 1) == (
        "micro-batches of 4 sequences, 3 a step: training.micro_batch_size 5 does not divide a process's 12 sequences "
        "of the batch"
    )


def test_a_micro_batch_that_does_not_divide_is_made_smaller(inputs: Path, tmp_path: Path) -> None:
    batches = make_run(inputs, tmp_path, "scratch", training={"micro_batch_size": 3}).micro_batches(0)
    size = tiny_study(inputs).training.global_batch_size
    assert size % 3
    assert [len(batch.input_ids) for batch in batches] == [2] * (size // 2)


def test_a_distilling_arm_without_teacher_is_refused(inputs: Path, tmp_path: Path) -> None:
    study = tiny_study(inputs, teacher=None)
    with pytest.raises(ModelError, match="teacher"):
        prepare_run(study, "minilm", 0, tmp_path, None)


def test_an_unknown_ds_config_names_the_nearest(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'zero2_offload'"):
        make_run(inputs, tmp_path, "scratch", training={"ds_config": "zero2_ofload"})
