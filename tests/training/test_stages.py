"""A whole run (train, validate, export) at ZeRO-3, where every weight is in pieces, ends as at stage 0."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import PARITY_FLOAT32_RELATIVE

from kd_megatron.ranks import dist
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import prepare_run


@pytest.mark.parametrize("objective", ARMS)
def test_a_whole_run_in_pieces_ends_as_in_one(objective: str, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "inputs")
    summaries, weights = [], []
    for stage in ("zero0", "zero3"):
        study = tiny_study(inputs, training={"ds_config": stage}, budget={"tokens": 4 * 8 * 16})
        directory = tmp_path / stage
        summaries.append(pretrain(study, objective, 0, directory, str(inputs / "teacher")))
        weights.append(load_file(directory / "export" / "model.safetensors"))
    one, two = (summary["validation"] for summary in summaries)
    assert one.keys() == two.keys()
    for name, value in one.items():  # None: the arm trains no head
        expected = value if value is None else pytest.approx(value, rel=PARITY_FLOAT32_RELATIVE)
        assert two[name] == expected, name
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_student_in_pieces_changes_nothing_but_itself(tmp_path: Path) -> None:
    """DeepSpeed replaces `linear` for the whole process: a teacher beside this student would round otherwise."""
    inputs = write_inputs(tmp_path / "inputs")
    before = torch.nn.functional.linear
    study = tiny_study(inputs, training={"ds_config": "zero3"}, budget={"tokens": 8 * 16})
    run = prepare_run(study, "minilm", 0, tmp_path / "run", str(inputs / "teacher"))
    assert torch.nn.functional.linear is before
    layers = [layer for layer in run.module.modules() if isinstance(layer, torch.nn.Linear)]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)  # the student's own keep no gathered weights
    run.close()
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_process_that_leaves_its_group_and_joins_another_trains_again(tmp_path: Path) -> None:
    """DeepSpeed's groups are those of the first one, unless it is told to forget them."""
    inputs = write_inputs(tmp_path / "inputs")
    for number, ds_config in enumerate(["zero2", "zero0"]):
        dist.shut_down()
        dist.initialise()
        study = tiny_study(inputs, training={"ds_config": ds_config}, budget={"tokens": 2 * 8 * 16})
        summary = pretrain(study, "scratch", 0, tmp_path / str(number), None)
        assert summary["steps"] == 2
