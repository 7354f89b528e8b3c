"""A checkout that nodes can run, and a small study for it."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster
from tiny_study import tiny_study

from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study.effective import run_recipe
from kd_megatron.study.piece import teacher_path
from kd_megatron.training.run import pretrain

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("launch.sh", "requirements.txt", "pyproject.toml", "kd_megatron", "data_prep", "ds_configs")
PATIENCE_SECONDS = 240  # for an event that has to come: only a hang takes this long


def make_checkout(place: Path, at: Path | None = None) -> None:
    """A committed copy of this checkout's sources in ``place``; ``at``: where it will be seen (default: there)."""
    place.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    python = place / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && exit 1  # a test installs nothing\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    pinned = f"{at or place}\n" + "".join((place / name).read_text() for name in ("requirements.txt", "pyproject.toml"))
    (place / ".venv/installed.sha256").write_text(hashlib.sha256(pinned.encode()).hexdigest() + "\n")
    (place / ".gitignore").write_text(".venv\n/data/\n/runs/\n__pycache__/\n")
    commit(place, "as tested")


def commit(place: Path, message: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        [*identity, "commit", "-q", "--allow-empty", "-m", message],
    ):
        subprocess.run(["git", "-C", str(place), *words], check=True)


def write_recipe(checkout: Path, name: str, num_steps: int, **training: Any) -> str:
    """A study of ``num_steps`` steps of 8 sequences; returns its path in the checkout."""
    settings = {"micro_batch_size": 2, "ds_config": "zero2", **training}
    budget, validation = {"tokens": num_steps * 8 * 16}, {"probe_steps": 1}
    study = tiny_study(checkout / "data", training=settings, budget=budget, validation=validation)
    path = checkout / "data" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    return f"data/{name}.yaml"


def losses(run: Path) -> list[float]:
    """The training loss of each step so far."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row["loss"] for row in rows if "loss" in row]


def wait_for_steps(run: Path, steps: int, process: "subprocess.Popen[str]") -> None:
    """Until the run has written the rows of ``steps`` steps."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and len(losses(run)) >= steps:
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"step {steps} was not reached: {process.communicate()[0][-3000:]}")


def one_process(checkout: Path, recipe: str, arm: str, output: Path) -> Path:
    """The same run in one process, this one; returns its directory."""
    study = config.load(checkout / recipe, StudyRecipe, ["training.micro_batch_size=8", "training.ds_config=zero0"])
    try:
        pretrain(run_recipe(study, arm, 0), arm, 0, output, teacher_path(study, output))
    finally:
        dist.shut_down()
    return output


def validation_losses(run: Path) -> list[float]:
    """The held-out losses of a finished run."""
    scores = json.loads((run / "summary.json").read_text(encoding="utf-8"))["validation"]
    return [score for name, score in scores.items() if name.endswith("loss") and score is not None]


def launch(nodes: Cluster, checkout: Path, *words: str, first: str = "nodea", **environment: str) -> tuple[int, str]:
    """``./launch.sh WORDS`` on the ``first`` node, to its end: exit code and output."""
    process = nodes.start(first, ["./launch.sh", *words], checkout, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
