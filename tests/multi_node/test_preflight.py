"""What preflight finds on nodes that do not fit, over ssh and among the ranks; four nodes that do."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, cluster
from small_job import commit, launch, losses, make_checkout, one_process, write_recipe
from tolerances import PARITY_FLOAT32_RELATIVE

from kd_megatron.errors import EnvironmentFault, RecipeError
from kd_megatron.launch import facts
from kd_megatron.launch import preflight as preflight_module
from kd_megatron.launch.ssh import Host
from kd_megatron.ranks.ports import free_port


def test_with_two_nodes_the_first_is_the_measure_with_more_the_majority():
    two = facts.differences({"a": {"torch": "1"}, "b": {"torch": "2"}})
    assert two == ["b has torch 2, a has 1"]
    three = facts.differences({"a": {"torch": "1"}, "b": {"torch": "2"}, "c": {"torch": "2"}})
    assert three == ["a has torch 1, the others have 2"]
    lacking = facts.differences({"a": {"torch": "1", "data x": "5"}, "b": {"torch": "1"}})
    assert lacking == ["b has data x absent, a has 5"]


def test_all_problems_are_one_error():
    facts.refuse([])
    with pytest.raises(EnvironmentFault, match=r"preflight: first\n  second") as error:
        facts.refuse(["first", "second"])
    assert error.value.exit_code == 7


def test_lines_of_a_nodes_shell_are_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(preflight_module, "ssh_command", lambda host, remote: ["bash", "-c", f"echo Welcome; {remote}"])
    asked = preflight_module.Asked(Host("here", 1), 0, f"127.0.0.1:{free_port()}", [])
    try:
        answer = asked.answer()
        assert (answer["address"], answer["problems"]) == ("127.0.0.1", [])
        assert asked.ask({"other": ("127.0.0.1", answer["port"])}) == []
    finally:
        asked.close()


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no-such\.yaml"):
        facts.require_recipe([str(tmp_path / "no-such.yaml")])
    with pytest.raises(RecipeError, match="foo"):
        facts.require_recipe(["recipes/debug.yaml", "foo"])
    facts.require_recipe(["recipes/debug.yaml", "data.sequence_length=64"])


@pytest.fixture
def preflight(two_nodes: Cluster) -> list[str]:
    return ["--hosts", str(two_nodes.hostfile()), "preflight"]


@pytest.mark.long
def test_a_port_in_use_a_full_disk_and_a_node_that_is_off(
    two_nodes: Cluster, checkout: Path, preflight: list[str]
) -> None:
    listen = "import socket, time; s = socket.create_server(('', 29500)); print('listens', flush=True); time.sleep(300)"
    listener = two_nodes.start("nodea", [sys.executable, "-c", listen], checkout)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "listens\n"
    code, output = launch(two_nodes, checkout, *preflight)
    assert code == 7
    assert "nodea cannot open port 29500" in output
    assert launch(two_nodes, checkout, *preflight, MASTER_PORT="29501")[0] == 0
    for process in psutil.Process(listener.pid).children():  # nsenter's own end would leave it on the port
        process.kill()
    listener.wait()

    code, output = launch(two_nodes, checkout, *preflight, KD_MIN_FREE_GIB="1e9")
    assert code == 7
    assert "nodea has " in output
    assert "GiB of free disk" in output

    two_nodes.nodes["nodeb"].switch_off()
    code, output = launch(two_nodes, checkout, *preflight)
    two_nodes.nodes["nodeb"].switch_on()
    assert code == 7
    assert "nodeb does not answer ssh" in output
    assert "nodea" not in output


@pytest.mark.long
def test_a_node_without_the_repository_and_one_without_its_environment(
    two_nodes: Cluster, checkout: Path, preflight: list[str], tmp_path: Path
) -> None:
    node = two_nodes.nodes["nodeb"]
    (tmp_path / "empty").mkdir()
    for mounts, message in (
        ({checkout.parent: tmp_path / "empty"}, f"nodeb has no directory {checkout}"),
        ({checkout: tmp_path / "empty"}, f"nodeb has no {checkout}/.venv"),
    ):
        node.switch_off()
        node.switch_on(mounts)
        code, output = launch(two_nodes, checkout, *preflight)
        assert code == 7, output
        assert message in output
    node.switch_off()
    node.switch_on()


@pytest.mark.long
def test_a_network_that_is_not_there_is_named(two_nodes: Cluster, checkout: Path, preflight: list[str]) -> None:
    code, output = launch(two_nodes, checkout, *preflight, GLOO_SOCKET_IFNAME="ib0")
    assert code == 7
    assert "nodea has no usable network: the network interface 'ib0'" in output
    code, output = launch(two_nodes, checkout, *preflight, MASTER_ADDR="localhost")
    assert code == 7
    assert "the name 'localhost' means 127.0.0.1" in output


@pytest.mark.long
def test_without_ssh_the_ranks_compare_their_nodes(two_nodes: Cluster, checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / checkout.name
    make_checkout(other)
    (other / "data").symlink_to(checkout / "data")
    commit(other, "another")
    recipe = write_recipe(checkout, "ranks", num_steps=6)
    words = ["--num-nodes", "2", "--master", two_nodes.nodes["nodea"].address, "pretrain", recipe, "--arm", "scratch"]
    both = [
        two_nodes.start("nodea", ["./launch.sh", "--node-rank", "0", *words], checkout),
        two_nodes.start("nodeb", ["./launch.sh", "--node-rank", "1", *words], other),
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [7, 7], outputs
    assert "nodeb (node 1) has commit" in outputs[0]


@pytest.fixture
def four_nodes(skip_without_namespaces: None, tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    with cluster(tmp_path / "cluster", ["node1", "node2", "node3", "node4"]) as made:
        yield made


@pytest.mark.long
def test_four_nodes_train_as_one_process(four_nodes: Cluster, checkout: Path, tmp_path: Path) -> None:
    recipe = write_recipe(checkout, "four", num_steps=12, ds_config="zero3")
    words = ["--hosts", str(four_nodes.hostfile()), "pretrain", recipe, "--arm", "tinybert", "--output", "runs/four"]
    code, output = launch(four_nodes, checkout, *words, first="node1")
    assert code == 0, output
    alone = one_process(checkout, recipe, "tinybert", tmp_path / "alone")
    assert losses(checkout / "runs/four") == pytest.approx(losses(alone), rel=PARITY_FLOAT32_RELATIVE)
