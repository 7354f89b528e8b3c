"""A run that is interrupted, or whose newest checkpoint was altered, goes on without losing a step.

After kill -9: tests/reliability/test_kill_resume.py. In one process, bit for bit: test_checkpoint_policy.py.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_study import tiny_study, write_inputs

from kd_megatron.files import locks

COMMAND = ["-m", "kd_megatron", "pretrain"]
NUM_STEPS = 60


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("resume"))


def recipe(inputs: Path, directory: Path, ds_config: str) -> Path:
    training = {"ds_config": ds_config, "precision": "bf16", "micro_batch_size": 4, "checkpoint_every_steps": 7}
    student = {"hidden_dropout": 0.1}  # so that a wrong random state shows
    study = tiny_study(inputs, training=training, student=student, budget={"tokens": NUM_STEPS * 8 * 16})
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    return path


def arguments(recipe_path: Path, output: Path) -> list[str]:
    return [*COMMAND, str(recipe_path), "--arm", "vanilla_kd", "--output", str(output)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "export" / "model.safetensors")


def rows(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def wait_for_step(output: Path, process: Any, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (output / "metrics.jsonl").exists() and len(rows_or_none(output)) >= step:
            return
        time.sleep(0.02)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0][-3000:]}")


def rows_or_none(output: Path) -> list[str]:
    return (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_sigterm_saves_and_exits_with_the_resumable_code(inputs: Path, tmp_path: Path) -> None:
    path = recipe(inputs, tmp_path, "zero0")
    (process,) = processes.start(arguments(path, tmp_path / "run"))
    wait_for_step(tmp_path / "run", process, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert "SIGTERM" in output
    assert "Traceback" not in output
    steps_done = len([row for row in rows(tmp_path / "run") if "loss" in row])
    resumed = processes.run(arguments(path, tmp_path / "run"))
    assert f"at step {steps_done}," in resumed  # not one step is lost
    again = processes.run(arguments(path, tmp_path / "run"))
    assert "step" not in again  # finished: nothing is done twice


def test_an_altered_checkpoint_is_passed_over_for_the_one_before(inputs: Path, tmp_path: Path) -> None:
    path = recipe(inputs, tmp_path, "zero0")
    output = tmp_path / "run"
    processes.run(arguments(path, output))
    (output / "summary.json").unlink()
    reference = weights(output)
    older, newest = sorted((output / "checkpoints").glob("step_*"))
    file = newest / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = processes.run(arguments(path, output))
    assert "is passed over" in said
    assert f"resumed from {older}" in said.replace("\n", "")
    assert all(torch.equal(reference[name], value) for name, value in weights(output).items())


def test_a_directory_of_another_run_is_refused_and_left_alone(inputs: Path, tmp_path: Path) -> None:
    path = recipe(inputs, tmp_path, "zero0")
    output = tmp_path / "run"
    output.mkdir()
    (output / "thesis.tex").write_text("precious")
    (process,) = processes.start(arguments(path, output))
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 5, said
    assert "holds files that are not a run's" in said
    assert [p.name for p in output.iterdir()] == ["thesis.tex"]


def test_a_directory_that_another_command_trains_in_is_refused(inputs: Path, tmp_path: Path) -> None:
    path, output = recipe(inputs, tmp_path, "zero0"), tmp_path / "run"
    output.mkdir()
    with locks.exclusive(output, wait=False):
        (process,) = processes.start(arguments(path, output))
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 5, said
    assert "another process is training in" in said
    assert not (output / "checkpoints").exists()
    processes.run(arguments(path, output))
