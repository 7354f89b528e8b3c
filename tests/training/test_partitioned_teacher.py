"""The student's engine leaves the teacher whole; an engine of its own may hold it in pieces, and nothing changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cells_worker import Cell, End, end_of, run_cells
from tiny_study import tiny_study, write_inputs

STAGES = {"vanilla_kd": "zero0", "tinybert": "zero2", "minilm": "zero3"}  # of the student beside it
PRECISIONS = {"vanilla_kd": "fp32", "tinybert": "fp32", "minilm": "bf16"}  # of the teacher
CASES = [*STAGES, "vanilla_kd-cached", "minilm-cached"]
NUM_STEPS = 4
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # matrices large enough to be worth cutting


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), **WIDE)


def cell(case: str, partition: bool, cache: Path) -> Cell:
    arm, _, is_cached = case.partition("-")
    teacher: dict[str, Any] = {"partition": partition, "precision": PRECISIONS[arm]}
    changes: dict[str, Any] = {"training": {"micro_batch_size": 2, "ds_config": STAGES[arm]}}
    if is_cached:  # of fewer windows than are read: some are made and some read, not the same on both processes
        teacher["cache"] = {"path": str(cache / f"{case}-{partition}")}
        changes["data"] = {"mask_seed": 1, "unique_tokens": 320}
    return Cell(f"{case}-{partition}", arm, NUM_STEPS, {"teacher": teacher, **changes})


@pytest.fixture(scope="module")
def ends(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """Of every case on two processes, by name CASE-PARTITION."""
    directory = tmp_path_factory.mktemp("cells")
    cells = [cell(case, partition, directory) for case in CASES for partition in (False, True)]
    return run_cells(cells, inputs, directory / "ends", world_size=2)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_bit_for_bit_those_of_a_whole_teacher(ends: dict[str, End], case: str) -> None:
    whole, pieces = ends[f"{case}-False"], ends[f"{case}-True"]
    assert pieces.curve == whole.curve
    assert all(torch.equal(pieces.weights[key], weight) for key, weight in whole.weights.items())
    assert pieces.curve[0] != pieces.curve[-1]


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half_of_a_partitioned_teacher(ends: dict[str, End], case: str) -> None:
    whole, pieces = ends[f"{case}-False"], ends[f"{case}-True"]
    assert whole.teacher_is_whole
    assert not pieces.teacher_is_whole
    assert 0.5 * whole.teacher_bytes <= pieces.teacher_bytes < 0.55 * whole.teacher_bytes  # small parameters stay


def test_one_process_may_hold_all_pieces(inputs: Path, tmp_path: Path) -> None:
    linear = torch.nn.functional.linear
    whole, pieces = (end_of(cell("vanilla_kd", cut, tmp_path), inputs, tmp_path) for cut in (False, True))
    assert pieces.curve == whole.curve
    assert torch.nn.functional.linear is linear  # DeepSpeed would give the student one that rounds otherwise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"compile": True}}, "does not go with training.compile"),
        ({"teacher": {"precision": "fp8"}}, "does not go with precision 'fp8'"),
    ],
)
def test_what_cannot_be_partitioned_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    teacher = {"partition": True, **changes.get("teacher", {})}
    with pytest.raises(ValueError, match=message):
        tiny_study(tmp_path, **{**changes, "teacher": teacher})
