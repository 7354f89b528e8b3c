"""The batch script of ``launch.sh --slurm``, run with stand-ins for srun and scontrol.

The stand-ins do what Slurm's programs are documented to do, on real nodes: srun runs one task on each node with its
SLURM_NODEID, passes signals on and ends with the highest exit code; scontrol names the nodes and notes a requeue.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from small_job import wait_for_steps, write_recipe

SRUN = """#!{python}
import json, os, signal, subprocess, sys
import psutil
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = []
for number, inside in enumerate(json.loads(os.environ["NODES"])):
    environment = os.environ | {{"SLURM_NODEID": str(number)}}
    enter = [*inside, "sh", "-c", 'cd "$0" && exec "$@"', os.getcwd()]
    tasks.append(subprocess.Popen([*enter, *words], env=environment, stdin=subprocess.DEVNULL))
def pass_on(number, _frame):
    for task in tasks:
        for process in psutil.Process(task.pid).children()[:1]:
            process.send_signal(number)
signal.signal(signal.SIGUSR1, pass_on)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
case $1 in
    show) echo nodea; echo nodeb ;;
    requeue) echo "$2" >> {log} ;;
esac
"""


@pytest.mark.long
def test_the_limit_saves_and_requeues_and_the_next_job_finishes(
    two_nodes: Cluster, checkout: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(checkout, "slurm", num_steps=300)
    requeued, run = tmp_path / "requeued", checkout / "runs/slurm"
    for name, text in {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL.format(log=requeued)}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = ["--slurm", "--nodes", "2", "--restarts", "1", "pretrain", recipe, "--arm", "scratch", "--output", str(run)]
    written = subprocess.run(["./launch.sh", *job], cwd=checkout, capture_output=True, text=True, check=True)
    (tmp_path / "job.sbatch").write_text(written.stdout)
    inside = [node.inside() for node in two_nodes.nodes.values()]
    settings = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[a-b]", "NODES": json.dumps(inside)}
    path = f"{tmp_path}:{os.environ['PATH']}"

    def submit() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", str(tmp_path / "job.sbatch")],
            env=two_nodes.environment() | settings | {"PATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    first = submit()
    wait_for_steps(run, 20, first)
    first.send_signal(signal.SIGUSR1)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output
    assert requeued.read_text() == "4711\n"
    second = submit()
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "resumed from" in output
    assert requeued.read_text() == "4711\n"
    assert (run / "summary.json").is_file()
