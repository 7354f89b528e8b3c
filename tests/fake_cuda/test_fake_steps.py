"""Whole training steps on a fake GPU: every objective, both precisions, the stages that read nothing by themselves.

Nothing of a step may mix devices, make the host wait, or copy to the device in a way that blocks. ZeRO stage 3 and
offload are left out: DeepSpeed itself reads the device there (docs/numerics.md), and what it reads are its decisions.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_runs import needs_fake_cuda, prepared, steps
from tiny_study import ARMS, write_inputs

from benchmarks.model.fake_cuda import fake_cuda

pytestmark = needs_fake_cuda

MINILM = {"objective": "minilm", "num_relation_heads": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    **ARMS,
    "distilbert": {"objective": "vanilla_kd", "positions": "all", "weight_cosine": 1.0},
    "minilm_clean": {**MINILM, "inputs": "clean"},
    "vanilla_kd_as_coded": {"objective": "vanilla_kd", "as_coded": True},
    "minilm_as_coded": {"objective": "minilm", "as_coded": True},
    "tinybert_as_coded": {"objective": "tinybert", "as_coded": True},
    "combined": {
        "objective": "combined",
        "parts": [{"weight": 1.0, "objective": "scratch"}, {"weight": 1.0, **MINILM}],
    },
    "schedule": {
        "objective": "schedule",
        "phases": [{"until": 0.5, "objective": "scratch"}, {"until": 1.0, **MINILM}],
    },
}
KERNELS = {
    ("minilm", "fp32"): {"relation_kl_forward", "relation_kl_backward"},
    ("minilm", "bf16"): {"relation_kl_whole"},
    ("tinybert", "fp32"): {"score_tiles", "hidden_mse_forward", "hidden_mse_backward"},
    ("tinybert", "bf16"): {"score_tiles", "hidden_mse_forward", "hidden_mse_backward"},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("fake"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", VARIANTS)
def test_a_step_of_every_objective(inputs: Path, tmp_path: Path, arm: str, precision: str) -> None:
    training = {"precision": precision, "gradient_clipping": 1.0}
    teacher = {"precision": precision}
    with (
        fake_cuda() as fake,
        prepared(inputs, tmp_path, arm, arms={arm: VARIANTS[arm]}, training=training, teacher=teacher) as run,
    ):
        launched: Counter[str] = Counter()
        fake.launch_observers.append(lambda name, _: launched.update([name]))
        steps(fake, run, 3)
        assert run.device.type == run.engine.device.type == "cuda"
        assert {p.device.type for p in run.module.parameters()} == {"cuda"}
        assert {p.grad.device.type for p in run.module.parameters() if p.grad is not None} <= {"cuda"}
        assert run.ledger.steps == 3
        reading = run.step.read()  # outside of the steps: what is read there are zeros
        assert all(count > 0 for count in reading.counts.values())
    assert set(launched) >= KERNELS.get((arm, precision), set())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ds_config", ["zero1", "zero2"])
def test_a_step_of_partitioned_stages(inputs: Path, tmp_path: Path, ds_config: str, precision: str) -> None:
    training = {"precision": precision, "ds_config": ds_config, "gradient_clipping": 1.0}
    with fake_cuda() as fake, prepared(inputs, tmp_path, "vanilla_kd", training=training) as run:
        steps(fake, run, 2)
        assert run.engine.zero_stage == int(ds_config[-1])


def test_activations_are_computed_again(inputs: Path, tmp_path: Path) -> None:
    training = {"precision": "bf16", "activation_checkpointing": True}
    with fake_cuda() as fake, prepared(inputs, tmp_path, "minilm", training=training) as run:
        steps(fake, run, 2)


def test_a_weight_that_two_modules_share_is_one_weight(inputs: Path, tmp_path: Path) -> None:
    with fake_cuda(), prepared(inputs, tmp_path, "scratch") as run:
        student = run.module.student
        assert student.embeddings is student.decoder.weight
        assert student.embeddings.is_cuda
