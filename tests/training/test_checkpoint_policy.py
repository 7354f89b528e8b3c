"""Which checkpoints a run writes and keeps, what it may change when it resumes, and what a failed one does to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_study import tiny_study, write_inputs

from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.files.records import read_metrics
from kd_megatron.training import run as runs
from kd_megatron.training.run import claim_run, pretrain

ARM = "scratch"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("policy"))


def steps_of(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in checkpoint.published(run / "checkpoints")]


def test_the_newest_every_nth_and_those_at_marks_of_the_budget_stay(inputs: Path, tmp_path: Path) -> None:
    policy = {"checkpoint_every_steps": 5, "keep_checkpoints": 1, "keep_every_steps": 8, "keep_at": [0.31, 0.62]}
    pretrain(tiny_study(inputs, training=policy), ARM, 0, tmp_path / "run", None)
    assert steps_of(tmp_path / "run") == [7, 8, 13, 16, 20]  # of 20 steps: 7 is the first at or after 0.31


def test_a_run_that_was_stopped_ends_with_the_same_bits_and_the_same_marks(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"checkpoint_every_steps": 6, "keep_checkpoints": 1, "keep_at": [0.31, 0.62], "precision": "bf16"}
    study = tiny_study(inputs, training=policy, student={"hidden_dropout": 0.1})  # shows a wrong random state
    pretrain(study, ARM, 0, tmp_path / "whole", None)
    with monkeypatch.context() as patch:
        fail_at(patch, 18)
        with pytest.raises(OutputError):
            pretrain(study, ARM, 0, tmp_path / "run", None)
    assert steps_of(tmp_path / "run") == [7, 13]
    pretrain(study, ARM, 0, tmp_path / "run", None)
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole") == [7, 13, 20]
    whole, resumed = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    before, after = (read_metrics(tmp_path / name) for name in ("whole", "run"))
    assert [row.get("loss") for row in before] == [row.get("loss") for row in after]


def fail_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """The disk refuses the checkpoint of ``step``."""
    write = checkpoint.write

    def refuse(directory: Path, about: checkpoint.About, state: Any) -> Path:
        if about.step == step:
            raise OSError(28, "No space left on device")
        return write(directory, about, state)

    patch.setattr(checkpoint, "write", refuse)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_soon(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(inputs, training={"checkpoint_every_steps": 50, "keep_every_steps": 30}, budget={"tokens": 1e6})
    fail_at(monkeypatch, 30)
    with pytest.raises(OutputError, match=r"no space left on the disk while writing .*step_00000030"):
        pretrain(study, ARM, 0, tmp_path / "run", None)
    assert 30 <= read_metrics(tmp_path / "run")[-1]["step"] < 50
    assert steps_of(tmp_path / "run") == []


def test_a_run_that_was_stopped_after_its_last_validation_tells_it_once(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(inputs)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "export", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(study, ARM, 0, tmp_path / "run", None)
    before = read_metrics(tmp_path / "run")
    assert "validation/probe_mlm_loss" in before[-1]
    pretrain(study, ARM, 0, tmp_path / "run", None)
    after = read_metrics(tmp_path / "run")
    assert [row["step"] for row in after] == [row["step"] for row in before]


def test_where_a_run_computes_may_change_and_what_it_learns_may_not(inputs: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    claim_run(tiny_study(inputs), ARM, 0, directory)
    claim_run(tiny_study(inputs, training={"ds_config": "zero3", "micro_batch_size": 2}), ARM, 0, directory)
    with pytest.raises(OutputError, match=r"these keys differ: training.learning_rate\n"):
        claim_run(tiny_study(inputs, training={"ds_config": "zero3", "learning_rate": 0.1}), ARM, 0, directory)


def test_a_run_that_was_begun_before_a_key_existed_goes_on(inputs: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    claim_run(tiny_study(inputs), ARM, 0, directory)
    path = directory / runs.RECIPE
    begun = yaml.safe_load(path.read_text())
    for key in ("keep_every_steps", "keep_at"):
        del begun["training"][key]
    path.write_text(yaml.safe_dump(begun))
    claim_run(tiny_study(inputs), ARM, 0, directory)
    with pytest.raises(OutputError, match=r"training\.keep_at"):
        claim_run(tiny_study(inputs, training={"keep_at": [0.5]}), ARM, 0, directory)
