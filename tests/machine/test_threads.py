"""How many cores a process may use: affinity, hardware threads, quota."""

import os

import pytest

from kd_megatron.machine import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """2 sockets of 4 cores of 2 hardware threads each: CPU k and k + 8 are one core. No quota."""
    for cpu in range(16):
        place = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(threads, "TOPOLOGY", tmp_path / "cpus")
    monkeypatch.setattr(threads, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path / "cgroup"


@pytest.mark.parametrize(("allowed", "cores"), [(range(16), 8), ({0, 8}, 1), ({0, 1, 9}, 2), ({99}, 1)])
def test_cores_are_counted_not_hardware_threads(machine, monkeypatch, allowed, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed))
    assert threads.usable_cores() == cores


@pytest.mark.parametrize(
    ("written", "cores"), [("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1), ("max 100000", 8)]
)
def test_a_quota_of_version_2(machine, written, cores):
    (machine / "cpu.max").write_text(f"{written}\n")
    assert threads.usable_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [(300000, 3), (-1, 8)])
def test_a_quota_of_version_1(machine, quota, cores):
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_cores() == cores
