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


@pytest.mark.parametrize(
    ("load", "running", "given", "threads_and_spin"),
    [
        (0.0, 1, {}, ("8", "1000")),
        (9.0, 10, {}, ("1", "1000")),  # all busy
        (3.2, 4, {}, ("5", "1000")),
        (9.0, 1, {}, ("8", "1000")),  # what was there has ended
        (0.1, 9, {}, ("8", "1000")),  # and what has just begun may end
        (3.0, 4, {"LOCAL_WORLD_SIZE": "2"}, ("2", "1000")),
        (9.0, 10, {"OMP_NUM_THREADS": "7"}, ("7", "1000")),
        (0.0, 1, {"OMP_WAIT_POLICY": "passive"}, ("8", None)),
        (0.0, 1, {"GOMP_SPINCOUNT": "5"}, ("8", "5")),
    ],
)
def test_threads_leave_busy_cores_alone(machine, monkeypatch, load, running, given, threads_and_spin):
    loadavg = machine / "loadavg"
    loadavg.write_text(f"{load} 1.0 1.0 {running}/500 12345\n")
    monkeypatch.setattr(threads, "LOADAVG", loadavg)
    monkeypatch.setattr(threads, "_notes", [])
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **given})
    threads.settle()
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("GOMP_SPINCOUNT")) == threads_and_spin
    assert (threads.note() is None) == ("OMP_NUM_THREADS" in given or min(load, running - 1) < 0.5)


@pytest.mark.parametrize(("quota", "cores"), [(300000, 3), (-1, 8)])
def test_a_quota_of_version_1(machine, quota, cores):
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_cores() == cores
