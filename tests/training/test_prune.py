"""Finished runs give back what they kept in order to go on, and nothing else goes."""

from pathlib import Path

import pytest
from tiny_study import tiny_study, write_inputs

from kd_megatron.cli.main import main
from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError
from kd_megatron.training.branch import prune
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import CHECKPOINTS


def test_finished_runs_lose_their_newest_checkpoints_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny_study(write_inputs(tmp_path / "inputs"), budget={"tokens": 6 * 8 * 16})
    training = {"keep_at": [0.5], "checkpoint_every_steps": 2}
    study = study.model_copy(update={"training": study.training.model_copy(update=training)})
    runs = tmp_path / "runs"
    done, going = runs / "scratch" / "seed_0", runs / "scratch" / "seed_1"
    summary = pretrain(study, "scratch", 0, done, None)
    pretrain(study, "scratch", 1, going, None)
    (going / "summary.json").unlink()  # as if it had not finished
    needed, others = checkpoint.published(going / CHECKPOINTS), {*done.rglob("*")} - {*(done / CHECKPOINTS).rglob("*")}
    kept = [path for path, _ in checkpoint.kept_for_good(done / CHECKPOINTS)]
    before = checkpoint.published(done / CHECKPOINTS)
    assert len(before) > len(kept) == 1

    freed = sum(file.stat().st_size for path in {*before} - {*kept} for file in path.iterdir())
    assert prune(runs) == (len(before) - 1, freed)
    assert checkpoint.published(done / CHECKPOINTS) == kept
    assert checkpoint.published(going / CHECKPOINTS) == needed
    assert others <= {*done.rglob("*")}, "exports and records stay"
    assert pretrain(study, "scratch", 0, done, None) == summary
    assert pretrain(study, "scratch", 1, going, None)["steps"] == summary["steps"]  # it goes on

    assert main(["prune", str(going), str(done)]) == 0
    said = capsys.readouterr().out
    assert f"{done}: 0 checkpoints removed, 0.00 GiB" in said
    assert f"{going}: {len(needed) - 1} checkpoints removed" in said


def test_a_place_without_a_finished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no finished run"):
        prune(tmp_path)
    assert main(["prune", str(tmp_path / "absent")]) == OutputError.exit_code
