"""What surrounds the steps of a run, on a fake GPU: compiled layers, teacher cache, validation, checkpoints, float8."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import needs_fake_cuda, prepared, steps
from safetensors import safe_open
from tiny_study import ARMS, write_inputs

from benchmarks.model.fake_cuda import FakeCudaError, fake_cuda
from kd_megatron.engine import checkpoint
from kd_megatron.training import loop
from kd_megatron.training.cached_teacher import CachedTeacher

pytestmark = needs_fake_cuda

POOL = 8  # windows: those of one step


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("fake"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ARMS)
def test_compiled_layers(inputs: Path, tmp_path: Path, arm: str, precision: str) -> None:
    """By the compiler up to its code generator, which needs a GPU: dynamo, and autograd ahead of time."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    training = {"precision": precision, "compile": True}
    with (
        fake_cuda() as fake,
        torch.compiler.set_stance("default", force_backend="aot_eager"),
        prepared(inputs, tmp_path, arm, training=training, teacher={"precision": precision}) as run,
    ):
        steps(fake, run, 2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= (1 if arm == "scratch" else 2)
    torch.compiler.reset()


def cached(cache: Path, arm: str) -> dict[str, Any]:
    """Sections of a study with a teacher cache, whose pool is what one step reads."""
    return {
        "data": {"mask_seed": 7, "unique_tokens": POOL * 16},
        "teacher": {"precision": "bf16", "cache": {"path": str(cache), "max_gib": 0.1}},
        "training": {"precision": "bf16"},
        "arms": {arm: ARMS[arm]},
    }


@pytest.mark.parametrize("arm", ["vanilla_kd", "minilm", "tinybert"])
def test_steps_from_a_warm_teacher_cache(inputs: Path, tmp_path: Path, arm: str) -> None:
    with fake_cuda() as fake, prepared(inputs, tmp_path / "run", arm, **cached(tmp_path / "cache", arm)) as run:
        teacher = run.step.teacher
        assert isinstance(teacher, CachedTeacher)
        with pytest.raises(FakeCudaError, match="cached_teacher"):
            steps(fake, run, 1)  # filling reads what the teacher says, to keep it
    with fake_cuda() as fake, prepared(inputs, tmp_path / "again", arm, **cached(tmp_path / "cache", arm)) as run:
        fill(run)
        steps(fake, run, 2)
        assert run.step.teacher.facts()["rows_read"] == 2 * POOL


def fill(run: Any) -> None:
    """Every window of the pool, by the teacher."""
    for batch in run.micro_batches(0):
        run.step.teacher(batch.to(run.device), run.objective.options.inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ["vanilla_kd", "minilm"])
def test_a_whole_run(inputs: Path, tmp_path: Path, arm: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its log rows, validations (probe and own head), and checkpoints, of which the last is whole.

    The steps between them wait for nothing, also while a checkpoint is written.
    """
    one_step = loop.one_step

    def hot_step(*arguments: Any) -> bool:
        with fake.hot():
            return one_step(*arguments)

    monkeypatch.setattr(loop, "one_step", hot_step)
    validation = {"at": [0.5, 1.0], "num_samples": 8, "probe_windows": 16, "skip_samples": 0}
    training = {"precision": precision, "checkpoint_every_steps": 2}
    budget = {"tokens": 4 * 8 * 16}
    sections = {"training": training, "validation": validation, "budget": budget}
    with fake_cuda() as fake, prepared(inputs, tmp_path, arm, **sections) as run:
        loop.train(run)
        scores = loop.validate(run, 1.0)
        assert run.ledger.steps == 4
        shapes = {name: list(parameter.shape) for name, parameter in run.module.named_parameters()}
    assert scores is not None
    assert ("mlm_loss" in scores) == (arm == "vanilla_kd")
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    path, about = newest
    assert about.step == 4
    with safe_open(path / checkpoint.TENSORS["weights"], "pt") as kept:
        found = {name: list(kept.get_slice(name).get_shape()) for name in about.parameters}
    assert found == about.parameters == shapes


def test_a_float8_teacher(inputs: Path, tmp_path: Path) -> None:
    with (
        fake_cuda() as fake,
        prepared(inputs, tmp_path, "minilm", training={"precision": "bf16"}, teacher={"precision": "fp8"}) as run,
    ):
        steps(fake, run, 2)
