"""A run that goes on with other numbers of processes and at other ZeRO stages learns as one that never moved."""

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from tiny_study import tiny_study, write_inputs
from tolerances import PARITY_FLOAT32_RELATIVE

from kd_megatron.ledger import Entry
from kd_megatron.recipe import StudyRecipe
from kd_megatron.training.run import pretrain

WORKER = str(Path(__file__).parent / "interrupted_worker.py")
ARM = "vanilla_kd"
NUM_STEPS = 40
NO_STOP = NUM_STEPS + 1


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("world_sizes"))


@pytest.fixture(scope="module")
def reference(inputs: Path) -> Path:
    """Alone, at stage 0, in one piece."""
    pretrain(study(inputs, "zero0"), ARM, 0, inputs / "reference", str(inputs / "teacher"))
    return inputs / "reference"


def study(inputs: Path, ds_config: str) -> StudyRecipe:
    training = {"ds_config": ds_config, "micro_batch_size": 2, "checkpoint_every_steps": 100, "keep_at": [0.05, 0.75]}
    return tiny_study(inputs, training=training, budget={"tokens": NUM_STEPS * 8 * 16})


def stretch(inputs: Path, output: Path, world_size: int, ds_config: str, stop_step: int) -> str:
    """Go on with ``output`` until a stop at ``stop_step``, or to the end, on so many processes; rank 0's words."""
    recipe = inputs / f"{ds_config}.yaml"
    recipe.write_text(yaml.safe_dump(study(inputs, ds_config).model_dump(mode="json")), encoding="utf-8")
    program = [WORKER, str(recipe), ARM, str(output), str(inputs / "teacher"), str(stop_step)]
    ranks = processes.start(program, world_size)
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    expected = 0 if stop_step == NO_STOP else 75
    assert [rank.returncode for rank in ranks] == [expected] * world_size, said
    return said[0]


def curve(run: Path) -> list[dict[str, Any]]:
    """The numbers of every row but times; of validations too, which the weights decide.

    The share that epsilon took is a few millionths, all of it in weights whose gradients are rounding.
    """
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row.get("epsilon_share", 0.0) < 1e-3 for row in rows)
    left_out = ("hours", "tokens_per_second", "epsilon_share")
    numbers = [{k: v for k, v in row.items() if k not in left_out} for row in rows]
    for row in numbers:  # the probe's curve, number by number
        row |= {f"curve_{pass_}": loss for pass_, loss in enumerate(row.pop("validation/probe_curve", []))}
    return numbers


def assert_learned_alike(reference: Path, run: Path) -> None:
    expected, found = curve(reference), curve(run)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for before, after in zip(expected, found, strict=True):
        assert after == pytest.approx(before, rel=PARITY_FLOAT32_RELATIVE), before["step"]
    ledgers = [json.loads((path / "ledger.json").read_text()) for path in (reference, run)]
    for name in ("steps", "tokens", "unique_tokens"):
        assert ledgers[0][name] == ledgers[1][name]
    for name, entry in ledgers[0]["accounts"].items():
        assert entry["flops"] == ledgers[1]["accounts"][name]["flops"]


def test_two_processes_at_stage_2_then_one_at_stage_3(inputs: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "moved"
    stretch(inputs, output, 2, "zero2", stop_step=15)
    stopped = sorted((output / "checkpoints").iterdir())[-1]
    state = json.loads((stopped / "run_state.json").read_text())
    assert (state["world_size"], state["zero_stage"]) == (2, 2)
    pretrain(study(inputs, "zero3"), ARM, 0, output, str(inputs / "teacher"))
    assert_learned_alike(reference, output)
    names = [path.name for path in sorted((output / "checkpoints").iterdir())]
    assert names == ["step_00000002", "step_00000030", "step_00000040"]  # marks at 0.05 and 0.75, and the end

    before = Entry(**state["run"]["ledger"]["accounts"]["student"])
    after = Entry(**json.loads((output / "ledger.json").read_text())["accounts"]["student"])
    assert before.device_seconds == pytest.approx(2 * before.seconds)
    alone = after.seconds - before.seconds
    assert after.device_seconds - before.device_seconds == pytest.approx(alone)


@pytest.mark.long
def test_1_then_2_then_4_then_1_process(inputs: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "moved"
    places = [(1, "zero1", 10), (2, "zero2_offload", 20), (4, "zero3", 30), (1, "zero0", NO_STOP)]
    for world_size, ds_config, stop_step in places:
        said = stretch(inputs, output, world_size, ds_config, stop_step)
    assert "written by 4 processes at ZeRO stage 3, here 1 at stage 0" in said.replace("\n", " ")
    assert_learned_alike(reference, output)
