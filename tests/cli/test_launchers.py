"""The launchers that people have in their scripts: torchrun and deepspeed's own start a run as they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import environment
from tiny_study import tiny_study, write_inputs

from kd_megatron.cli import main as cli
from kd_megatron.launch import facts, preflight
from kd_megatron.ranks import dist
from kd_megatron.ranks.ports import free_port

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}", "-m"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "{port}", "--module"]
SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_a_launcher_starts_a_run_of_two_processes(tmp_path: Path, launcher: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    study = tiny_study(
        write_inputs(tmp_path), budget={"tokens": 2 * 8 * 16}, validation={"at": [1.0], "probe_steps": 1}
    )
    recipe.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    words = [word.format(port=free_port()) for word in launcher]
    command = ["kd_megatron", "pretrain", str(recipe), "--arm", "scratch", "--output", str(tmp_path / "run")]
    own = {key: value for key, value in environment().items() if key not in SET_BY_LAUNCHERS}
    done = subprocess.run(
        [sys.executable, *words, *command], env=own, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    facts_of_run = json.loads((tmp_path / "run" / "fingerprint.json").read_text(encoding="utf-8"))
    assert facts_of_run["hardware"]["num_processes"] == 2
    assert summary["steps"] == 2


@pytest.mark.parametrize("word", ["--local_rank=3", "--local-rank=3"])
def test_a_rank_before_the_command_is_the_launchers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cli.main([word, "plan", "r.yaml", "--helpful"]) == 2
    assert "unknown argument '--helpful'" in capsys.readouterr().err
    monkeypatch.delenv("LOCAL_RANK")
    assert cli.without_local_rank([word, "plan"]) == ["plan"]
    assert os.environ["LOCAL_RANK"] == "3"


@pytest.mark.parametrize("arguments", [["--local_rank", "plan"], ["--local_rank=x"], ["plan", "--local_rank=0"], []])
def test_nothing_else_is_taken_for_it(arguments: list[str]) -> None:
    assert cli.without_local_rank(arguments) == arguments


@pytest.mark.parametrize("names", [("CROSS_SIZE", "CROSS_RANK"), ("GROUP_WORLD_SIZE", "GROUP_RANK")])
def test_nodes_are_compared_under_either_launcher(monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]) -> None:
    for name in ("CROSS_SIZE", "CROSS_RANK", "GROUP_WORLD_SIZE", "GROUP_RANK", "KD_NODE"):
        monkeypatch.delenv(name, raising=False)
    asked: list[object] = []

    def gather(own: object) -> list[object]:
        asked.append(own)
        return [own]

    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "gather", gather)
    monkeypatch.setenv("LOCAL_RANK", "0")
    preflight.compare_nodes([])
    assert asked == []
    monkeypatch.setenv(names[0], "2")
    monkeypatch.setenv(names[1], "1")
    preflight.compare_nodes([])
    assert len(asked) == 1
    assert "(node 1)" in facts.node_name()
