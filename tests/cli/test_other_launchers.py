"""The launchers of DeepSpeed and torch start the program as they are, without launch.sh: two processes on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import tiny_study, write_inputs

from kd_megatron.cli import main as cli
from kd_megatron.errors import RecipeError
from kd_megatron.ranks.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "-m", "kd_megatron"],
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module", "kd_megatron"],
}


def start(launcher: str, directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ``kd_megatron`` with ``arguments`` in ``directory``, as two processes of ``launcher``."""
    command = [str(BIN / LAUNCHERS[launcher][0]), *LAUNCHERS[launcher][1:], *arguments]
    command[command.index("PORT")] = str(free_port())
    mine = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of a group that another test joined
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    environment |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study's recipe and what it reads; arms are four steps long."""
    where = write_inputs(tmp_path_factory.mktemp("launchers"))
    study: dict[str, Any] = tiny_study(where, budget={"tokens": 4 * 8 * 16}).model_dump(mode="json", exclude_unset=True)
    (where / "recipe.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return where


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_arm_is_trained_by_two_processes(launcher: str, directory: Path) -> None:
    done = start(launcher, directory, "pretrain", "recipe.yaml", "--arm", "minilm", "--output", launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((directory / launcher / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 4
    assert summary["fingerprint"]["hardware"]["num_processes"] == 2
    assert done.stdout.count(f"{launcher}/export") == 1, "rank 0 alone speaks"


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_error_is_one_message(launcher: str, directory: Path) -> None:
    done = start(launcher, directory, "pretrain", "recipe.yaml", "--arm", "no_such_arm")
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("error: --arm 'no_such_arm'") == 1


@pytest.mark.parametrize("given", ["--local_rank=3", "--local-rank=3"])
def test_the_launchers_own_argument_is_taken_off(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "restored afterwards")
    monkeypatch.delenv("LOCAL_RANK")
    assert cli.without_launchers_rank([given, "plan", "recipe.yaml"]) == ["plan", "recipe.yaml"]
    assert os.environ["LOCAL_RANK"] == "3"
    assert cli.without_launchers_rank(["--local_rank=1", "plan"]) == ["plan"]
    assert os.environ["LOCAL_RANK"] == "3", "what the launcher put into the environment goes before"


def test_a_rank_that_somebody_wrote_elsewhere_is_an_unknown_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preflight", "--local_rank=0"]) == RecipeError.exit_code
    assert "unknown argument '--local_rank=0'" in capsys.readouterr().err
