"""A step that is not finite between two looks of the host: nothing trains on, and the look says which step it was."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
from tiny_study import write_inputs

from kd_megatron.engine.saving import CheckpointWriter
from kd_megatron.errors import NonFiniteError
from kd_megatron.training.loop import naming_last_checkpoint

WORKER = str(Path(__file__).parent / "nonfinite_worker.py")
LOSS = "step 3 (samples 20-23 on rank 1): loss term mlm is not finite"  # 8 samples a step, 4 on each rank
GRADIENT = "step 3 (samples 16-23): a gradient is not finite"
CASES = {
    **{f"{s}-{p}-loss:loss:{s}:{p}": LOSS for s in ("zero0", "zero2", "zero3") for p in ("fp32", "bf16")},
    **{f"{s}-{p}-gradient:gradient:{s}:{p}": GRADIENT for s in ("zero0", "zero2") for p in ("fp32", "bf16")},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each rank, by case."""
    directory = write_inputs(tmp_path_factory.mktemp("nonfinite"))
    output = directory / "results.json"
    processes.run([WORKER, str(directory), str(output), *CASES], world_size=2)
    ranks: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))
    return ranks


@pytest.mark.parametrize("case", CASES)
def test_one_bad_rank_stops_all_before_the_update_and_the_look_names_its_samples(
    results: list[dict[str, Any]], case: str
) -> None:
    assert len(results) == 2
    for rank in results:
        assert rank[case]["num_kept"] > 40
        assert rank[case]["changed"] == []
        assert rank[case]["message"].startswith(CASES[case]), rank[case]["message"]


def test_the_message_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = SimpleNamespace(checkpoints=CheckpointWriter(tmp_path, keep=2))
    for name, said in ((None, "there was no checkpoint yet"), ("step_00000010", "step_00000010")):
        if name:
            (tmp_path / name).mkdir()
        with pytest.raises(NonFiniteError, match=said), naming_last_checkpoint(run):
            raise NonFiniteError(given="step 11 (samples 80-87 on rank 1): loss term mlm is not finite")
