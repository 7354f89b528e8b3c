"""Two nodes train as one process does, and are compared before they start."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from small_job import commit, launch, losses, make_checkout, one_process, write_recipe
from tolerances import PARITY_FLOAT32_RELATIVE


def test_the_loss_curve_is_that_of_one_process(two_nodes: Cluster, checkout: Path, tmp_path: Path) -> None:
    recipe = write_recipe(checkout, "curve", num_steps=6)
    hosts = str(two_nodes.hostfile())
    code, output = launch(
        two_nodes, checkout, "--hosts", hosts, "pretrain", recipe, "--arm", "minilm", "--output", "runs/curve"
    )
    assert code == 0, output
    assert losses(checkout / "runs/curve") == pytest.approx(
        losses(one_process(checkout, recipe, "minilm", tmp_path / "alone")), rel=PARITY_FLOAT32_RELATIVE
    )
    assert not [process for node in two_nodes.nodes.values() for process in node.processes()]


@pytest.fixture
def other_checkout(two_nodes: Cluster, checkout: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkout of its own that ``nodeb`` alone sees at the place of the common one."""
    place = tmp_path / "other" / checkout.name
    make_checkout(place, at=checkout)
    shutil.copytree(checkout / "data", place / "data")
    subprocess.run(["git", "-C", str(place), "fetch", "-q", str(checkout), "HEAD"], check=True)
    subprocess.run(["git", "-C", str(place), "reset", "-q", "--soft", "FETCH_HEAD"], check=True)
    node = two_nodes.nodes["nodeb"]
    node.switch_off()
    node.switch_on({checkout: place})
    yield place
    node.switch_off()
    node.switch_on()


def test_preflight_names_the_odd_node_and_what_it_has(two_nodes: Cluster, checkout: Path, other_checkout: Path) -> None:
    recipe = write_recipe(checkout, "preflight", num_steps=6)
    shutil.copy(checkout / recipe, other_checkout / recipe)
    preflight = ["--hosts", str(two_nodes.hostfile()), "preflight", recipe]
    code, output = launch(two_nodes, checkout, *preflight)
    assert code == 0, output
    assert "2 nodes agree" in output

    manifest = other_checkout / "data/shards/manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][0]["bin_sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    source = other_checkout / "kd_megatron/ranks/dist.py"
    source.write_text(source.read_text() + "# changed, not committed\n")
    code, output = launch(two_nodes, checkout, *preflight)
    assert code == 7, output
    assert "nodeb has source code" in output
    assert f"nodeb has data {checkout}/data/shards" in output
    assert "nodeb has commit" not in output

    commit(other_checkout, "another")
    training = ["--hosts", str(two_nodes.hostfile()), "pretrain", recipe, "--arm", "scratch"]
    code, output = launch(two_nodes, checkout, *training)
    assert code == 7, output
    assert "nodeb has commit" in output
    assert not (checkout / "runs/tiny").exists()
