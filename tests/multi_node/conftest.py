"""Nodes, and a checkout with data that all of them see at one path, as on a shared file system."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster, why_not
from small_job import make_checkout
from tiny_study import write_inputs


@pytest.fixture(scope="session")
def skip_without_namespaces() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def checkout(skip_without_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed copy of this checkout's sources, whose .venv passes on to this Python, with shards and a teacher."""
    place = tmp_path_factory.mktemp("nodes") / "kd_megatron"
    make_checkout(place)
    write_inputs(place / "data")
    return place


@pytest.fixture(scope="session")
def two_nodes(skip_without_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """``nodea`` and ``nodeb``, switched on."""
    with cluster(tmp_path_factory.mktemp("cluster"), ["nodea", "nodeb"]) as made:
        yield made
