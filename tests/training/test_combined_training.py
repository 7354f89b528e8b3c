"""A combined objective in real steps: any split of the batch, a teacher cache, and FLOPs as torch counts them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from curves import curve, largest_difference
from tiny_study import tiny_study, write_inputs
from tolerances import FLOPS_RELATIVE, PARITY_FLOAT32_RELATIVE
from torch.utils.flop_counter import FlopCounterMode

from kd_megatron.engine import flops
from kd_megatron.recipe import StudyRecipe
from kd_megatron.training.setup import prepare_run

ARM = "together"
PARTS = [
    {"objective": "vanilla_kd"},
    {"weight": 0.5, "objective": "minilm", "num_relation_heads": 4, "teacher_layer": 3},
    {"weight": 2.0, "objective": "tinybert"},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("combined"))


def study(inputs: Path, **changes: Any) -> StudyRecipe:
    return tiny_study(inputs, arms={ARM: {"objective": "combined", "parts": PARTS}}, **changes)


def test_the_split_into_micro_batches_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    recipes = {size: study(inputs, training={"micro_batch_size": size}) for size in (8, 2)}
    whole, split = (
        curve(recipe, ARM, tmp_path / str(size), inputs / "teacher", 4, 1e-3) for size, recipe in recipes.items()
    )
    assert set(whole[0]) == {
        "vanilla_kd.kd", "vanilla_kd.mlm", "minilm.queries", "minilm.keys", "minilm.values", "tinybert.attention",
        "tinybert.hidden", "grad_norm",
    }  # fmt: skip
    assert largest_difference(whole, split) < PARITY_FLOAT32_RELATIVE


def test_a_teacher_cache_serves_all_parts(inputs: Path, tmp_path: Path) -> None:
    recipe = study(inputs, teacher={"cache": {"path": str(tmp_path / "cache")}}, data={"mask_seed": 1})
    filled, read = (curve(recipe, ARM, tmp_path / name, inputs / "teacher", 3, 1e-3) for name in ("fills", "reads"))
    assert filled == read


def test_flops_of_models_that_serve_several_parts_are_those_that_torch_counts(inputs: Path, tmp_path: Path) -> None:
    run = prepare_run(study(inputs), ARM, 0, tmp_path / "run", str(inputs / "teacher"))
    try:
        (batch,) = run.micro_batches(0)
        assert run.step.teacher is not None
        length, num_masked = 16, batch.masked_positions.shape[1]
        with FlopCounterMode(display=False) as counter:
            taps = run.step.teacher(batch, "masked")
            assert taps.logits is not None
            taps.logits.dense()  # the last product of the head, which the kernel of a loss makes
        config, needs = run.step.teacher.encoder.model.config, run.objective.needs_teacher
        attention = 4.0 * length**2 * config.hidden_size * config.num_hidden_layers  # the counter misses SDPA on a CPU
        assert needs is not None
        ours = flops.teacher_flops(config, needs, length, num_masked)
        assert 8 * ours == pytest.approx(counter.get_total_flops() + 8 * attention, rel=FLOPS_RELATIVE)
        assert run.cost.teacher == ours
        student = run.module.student
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits = student(batch, "masked").logits
            assert logits is not None
            logits.dense()
        forward = counter.get_total_flops() + 8 * 4.0 * length**2 * 24 * 2
        assert 8 * run.cost.student == pytest.approx(3 * forward, rel=FLOPS_RELATIVE)
    finally:
        run.close()
