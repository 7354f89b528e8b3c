"""Nodes that die, links that break, signals: the others stop, say which node it was, and the run comes back."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, Node
from small_job import one_process, validation_losses, wait_for_steps, write_recipe
from tolerances import NODES_RESUMED_RELATIVE

NUM_STEPS = 250
STOP_SECONDS = 60  # within which the other nodes have to stop
COMMON = ["--arm", "minilm", "training.checkpoint_every_steps=20"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def recipe(checkout: Path) -> str:
    return write_recipe(checkout, "faults", NUM_STEPS)


@pytest.fixture(scope="module")
def uninterrupted(checkout: Path, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    return one_process(checkout, recipe, "minilm", tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture
def nodes(two_nodes: Cluster) -> Iterator[Cluster]:
    """Two nodes, which are left as they were: on, connected, and with nothing running."""
    yield two_nodes
    for node in two_nodes.nodes.values():
        node.link("up")
        if node.process is None:
            node.switch_on()
        wait_until_idle(node, seconds=90)


def wait_until_idle(node: Node, seconds: float) -> None:
    """Until nothing but sshd runs on ``node``, ``seconds`` at most."""
    begun = time.monotonic()
    while node.processes():
        assert time.monotonic() < begun + seconds, [process.cmdline() for process in node.processes()]
        time.sleep(0.2)


def train(nodes: Cluster, checkout: Path, recipe: str, output: str, *options: str) -> "subprocess.Popen[str]":
    hosts = ["--hosts", str(nodes.hostfile()), *options]
    return nodes.start("nodea", ["./launch.sh", *hosts, "pretrain", recipe, *COMMON, "--output", output], checkout)


def launch_sh(process: "subprocess.Popen[str]") -> psutil.Process:
    """launch.sh itself, below the program that entered the node."""
    return psutil.Process(process.pid).children()[0]


def test_a_killed_node_ends_the_others_and_a_restart_brings_the_run_back(
    nodes: Cluster, checkout: Path, recipe: str, uninterrupted: Path
) -> None:
    """Every process of a node is killed, sshd too; it boots again 15 seconds later."""
    process = train(nodes, checkout, recipe, "runs/killed", "--restarts", "1")
    wait_for_steps(checkout / "runs/killed", 60, process)
    training = [p for p in nodes.nodes["nodea"].processes() if "pretrain" in p.cmdline() and "-u" in p.cmdline()]
    assert training
    nodes.nodes["nodeb"].switch_off()
    _, alive = psutil.wait_procs(training, timeout=STOP_SECONDS)
    assert not alive
    time.sleep(15)
    nodes.nodes["nodeb"].switch_on()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "node nodeb is lost" in output
    assert "restart 1 of 1: the run ended with exit code 9" in output
    step = re.search(r"resumed from \S+ at step (\d+)", output)
    assert step is not None
    assert int(step[1]) >= 60 - 20
    assert validation_losses(checkout / "runs/killed") == pytest.approx(
        validation_losses(uninterrupted), rel=NODES_RESUMED_RELATIVE
    )


def test_a_broken_link_ends_both_nodes(nodes: Cluster, checkout: Path, recipe: str) -> None:
    """Nothing is killed and no connection is closed: the other node is just silent."""
    process = train(nodes, checkout, recipe, "runs/link")
    wait_for_steps(checkout / "runs/link", 40, process)
    nodes.nodes["nodeb"].link("down")
    output, _ = process.communicate(timeout=STOP_SECONDS + 30)
    assert process.returncode == 9, output
    assert "node nodeb is lost" in output
    wait_until_idle(nodes.nodes["nodea"], seconds=10)
    wait_until_idle(nodes.nodes["nodeb"], seconds=STOP_SECONDS + 60)  # by its own watchdog: nobody can reach it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_on_all_nodes_and_the_same_command_resumes(
    nodes: Cluster, checkout: Path, recipe: str, number: signal.Signals
) -> None:
    run = f"runs/{number.name}"
    process = train(nodes, checkout, recipe, run, "--restarts", "1")
    wait_for_steps(checkout / run, 30, process)
    launch_sh(process).send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert f"stopped by {number.name} on rank" in output
    assert "restart" not in output
    stopped_at = re.search(r"stopped by [\w, ]+ at step (\d+)", output)
    assert stopped_at is not None
    assert (checkout / run / "checkpoints" / f"step_{int(stopped_at[1]):08d}").is_dir()


def test_kill_9_of_launch_leaves_nothing_on_any_node(nodes: Cluster, checkout: Path, recipe: str) -> None:
    process = train(nodes, checkout, recipe, "runs/killed_launch")
    wait_for_steps(checkout / "runs/killed_launch", 30, process)
    launch_sh(process).kill()
    for node in nodes.nodes.values():
        wait_until_idle(node, seconds=90)
    process.communicate(timeout=60)


def test_without_ssh_each_node_is_started_by_itself(nodes: Cluster, checkout: Path, recipe: str) -> None:
    """As Slurm and Kubernetes do it; SIGTERM to one node's launch.sh saves on both."""
    words = ["pretrain", recipe, *COMMON, "--output", "runs/no_ssh"]

    def start() -> list["subprocess.Popen[str]"]:
        where = ["--num-nodes", "2", "--master", "nodea:29555"]
        return [
            nodes.start(name, ["./launch.sh", "--node-rank", str(rank), *where, *words], checkout)
            for rank, name in enumerate(nodes.nodes)
        ]

    both = start()
    wait_for_steps(checkout / "runs/no_ssh", 30, both[0])
    launch_sh(both[1]).send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75], outputs
    again = start()
    outputs = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert "resumed from" in outputs[0]
