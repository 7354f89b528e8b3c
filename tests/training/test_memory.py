"""Memory as `plan` predicts it beside what a run's meter measures."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from curves import learn
from small_shards import VOCAB_SIZE
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import MEMORY_RELATIVE

from kd_megatron.engine.memory import predict
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.machine.memory import Living
from kd_megatron.recipe import StudyRecipe
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import prepare_run

CPU = torch.device("cpu")
SIZES = {"hidden_size": 128, "num_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
MANY = {"micro_batch_size": 16, "global_batch_size": 16}  # activations are most of it
FEW = {"micro_batch_size": 1, "global_batch_size": 2}  # weights and what belongs to them are
WIDE = {"hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), hidden_size=128, intermediate_size=512)


def point(inputs: Path, arm: str, ds_config: str, student: dict[str, int], **training: Any) -> StudyRecipe:
    study = tiny_study(
        inputs,
        data={"sequence_length": 64},
        student=SIZES | student,
        training={"ds_config": ds_config, **training},
    )
    return study.model_copy(update={"arms": {arm: ARMS[arm]}})


def measured(study: StudyRecipe, inputs: Path, directory: Path) -> int:
    """Bytes of tensors at the height of a step, by looking at every operation; the least of three steps.

    What reference cycles or another thread hold for a moment longer, in a process that has run other tests, is none of
    a step's.
    """
    (arm,) = study.arms
    gc.collect()
    before = [weakref.ref(tensor) for tensor in living_tensors()]
    run = prepare_run(study, arm, 0, directory, str(inputs / "teacher"))
    learn(run, 1, rate=1e-3)
    peaks = []
    for _ in range(3):
        gc.collect()
        others = {id(tensor) for known in before if (tensor := known()) is not None}
        with Living([tensor for tensor in living_tensors() if id(tensor) not in others]) as living:
            learn(run, 1, rate=1e-3)
        peaks.append(living.peak_bytes)
    run.close()
    return min(peaks)


def living_tensors() -> list[torch.Tensor]:
    return [thing for thing in gc.get_objects() if is_on_cpu(thing)]


def is_on_cpu(thing: object) -> bool:
    """Whether it is a tensor with numbers; some, such as those of a compiler, have no device."""
    if not issubclass(type(thing), torch.Tensor):
        return False
    try:
        return thing.device == CPU and thing.layout == torch.strided
    except RuntimeError:
        return False


def predicted(study: StudyRecipe) -> float:
    """By one simulation, as `plan` makes it."""
    (arm,) = study.arms
    return predict(study, simulate_arm(study, arm, VOCAB_SIZE), study.training.ds_config, 1).total


@pytest.mark.parametrize(
    ("arm", "ds_config", "student", "training"),
    [
        ("scratch", "zero0", {}, MANY),
        ("scratch", "zero0", {}, MANY | {"activation_checkpointing": True}),
        pytest.param("vanilla_kd", "zero1", {}, MANY, marks=pytest.mark.long),
        pytest.param("minilm", "zero2", {}, MANY, marks=pytest.mark.long),
        pytest.param("tinybert", "zero3", {}, MANY, marks=pytest.mark.long),
        ("minilm", "zero0", {"num_layers": 8}, MANY | {"micro_batch_size": 8}),
        pytest.param("scratch", "zero1", WIDE, FEW, marks=pytest.mark.long),
        pytest.param("minilm", "zero3", WIDE, FEW, marks=pytest.mark.long),
        pytest.param("scratch", "zero2_offload", WIDE, FEW, marks=pytest.mark.long),
        pytest.param("scratch", "zero3_offload", WIDE, FEW, marks=pytest.mark.long),
        *(
            pytest.param(arm, ds_config, student, training, marks=pytest.mark.long)
            for arm in ARMS
            for ds_config in ("zero0", "zero1", "zero2", "zero3")
            for student, training in (({}, MANY), (WIDE, FEW), (WIDE, MANY | {"precision": "bf16"}))
        ),
    ],
)
def test_a_run_takes_what_was_predicted(
    inputs: Path, tmp_path: Path, arm: str, ds_config: str, student: dict[str, int], training: dict[str, Any]
) -> None:
    study = point(inputs, arm, ds_config, student, **training)
    taken = measured(study, inputs, tmp_path)
    assert predicted(study) == pytest.approx(taken, rel=MEMORY_RELATIVE)


def test_a_run_records_what_it_took(inputs: Path, tmp_path: Path) -> None:
    study = tiny_study(inputs, budget={"tokens": 3 * 8 * 16})
    memory = pretrain(study, "scratch", 0, tmp_path / "run", None)["memory"]
    assert memory["training_bytes"] is None  # of a GPU alone
    assert 2**26 < memory["resident_bytes"] < 2**40
