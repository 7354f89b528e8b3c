"""ZeRO stages and offload x objectives x students with and without parts that no loss reaches, on two processes.

Each cell is held to one process at stage 0, loss by loss and weight by weight. `test_parity.py` has the stages without
offload for students that stop at their last tap; the short form here has the rest, the long one all.
"""

from pathlib import Path

import pytest
import torch
from cells_worker import Cell, End, end_of, run_cells
from curves import largest_difference
from tiny_study import ARMS, write_inputs
from tolerances import PARITY_FLOAT32_OF_UPDATE, PARITY_FLOAT32_RELATIVE

CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
OFFLOADS = CONFIGS[4:]
Key = tuple[str, str, bool]  # objective, ds_config, whether the student stops at its last tap

SHORT: list[Key] = [(arm, config, True) for arm in ARMS for config in OFFLOADS]
SHORT += [("minilm", config, False) for config in CONFIGS]
SHORT += [("tinybert", config, False) for config in ("zero3", "zero2_offload")]
ALL: list[Key] = [(arm, config, stops) for arm in ARMS for config in CONFIGS for stops in (True, False)]


def cell(key: Key, num_steps: int, micro_batch_size: int) -> Cell:
    arm, config, stops = key
    training = {"ds_config": config, "stop_at_last_tap": stops, "micro_batch_size": micro_batch_size}
    # Run again in pieces: what gathers weights and what runs layers twice meet on two processes here.
    training["activation_checkpointing"] = config == "zero3"
    return Cell("-".join(map(str, key)), arm, num_steps, {"training": training})


def check(keys: list[Key], num_steps: int, directory: Path) -> None:
    inputs = write_inputs(directory / "inputs")
    ends = run_cells([cell(key, num_steps, 2) for key in keys], inputs, directory / "together", world_size=2)
    alone = {
        arm: end_of(cell((arm, "zero0", True), num_steps, 8), inputs, directory / "alone")
        for arm in dict.fromkeys(arm for arm, _, _ in keys)
    }
    different = {
        name: found
        for name, end in ends.items()
        if (found := differences(end, alone[(arm := name.split("-")[0])], arm))
    }
    assert not different
    assert len(ends) == len(keys)


def differences(end: End, reference: End, arm: str) -> list[str]:
    """What is not as it should be."""
    problems = []
    if (curve := largest_difference(reference.curve, end.curve)) > PARITY_FLOAT32_RELATIVE:
        problems.append(f"losses or norms differ by {curve:.1e}")
    if (weights := weight_difference(end, reference, arm)) > PARITY_FLOAT32_OF_UPDATE:
        problems.append(f"weights differ by {weights:.1e} of the update")
    if end.untrained != reference.untrained:
        problems.append("other parameters are trained")
    if moved := [name for name in end.untrained if not torch.equal(end.weights[name], end.first_weights[name])]:
        problems.append(f"no loss reaches {moved[0]}, yet it moved")
    if not end.teacher_is_whole:
        problems.append("the teacher is partitioned")
    return problems


def is_rounding(arm: str, name: str) -> bool:
    """Whether a weight's gradient is nothing but rounding, which Adam makes whole updates of.

    No probability of an attention depends on the biases of its keys. They matter where a loss reads keys or scores:
    tinybert in all layers, minilm in the last one.
    """
    if not name.endswith("attention.self.key.bias") or arm == "tinybert":
        return False
    return arm != "minilm" or ".layer.1." not in name


def weight_difference(end: End, reference: End, arm: str) -> float:
    """The norm of the difference of all weights, as a share of how far the reference's have come, without rounding."""

    def norm(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
        assert one.keys() == two.keys()
        names = [name for name in one if not is_rounding(arm, name)]
        return torch.stack([(one[name].double() - two[name].double()).norm() for name in names]).norm().item()

    return norm(end.weights, reference.weights) / norm(reference.weights, reference.first_weights)


def test_cells_that_test_parity_lacks(tmp_path: Path) -> None:
    check(SHORT, 4, tmp_path)


@pytest.mark.long
def test_every_cell(tmp_path: Path) -> None:
    check(ALL, 20, tmp_path)
