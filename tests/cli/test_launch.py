"""launch.sh: what it would run, its messages, and that nothing outlives it. The scripts and launchers here are real;
only the program that the launcher starts is a small one, so that no training is needed."""

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("launch.sh", "requirements.txt", "pyproject.toml")
PATIENCE_SECONDS = 120  # for an event that has to come: only a hang takes this long

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.write(1, f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} {' '.join(sys.argv[1:])}\\n".encode())
time.sleep(600)
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with launch.sh and no .venv."""
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def ready(clone: Path) -> Path:
    """A clone whose .venv is set up (it passes calls on to this Python) and whose program is `WORKER`."""
    write_script(clone / ".venv/bin/python", f'exec "{sys.executable}" "$@"')
    pinned = f"{clone}\n".encode() + (clone / "requirements.txt").read_bytes() + (clone / "pyproject.toml").read_bytes()
    (clone / ".venv/installed.sha256").write_text(hashlib.sha256(pinned).hexdigest() + "\n")
    (clone / "kd_megatron").mkdir()
    (clone / "kd_megatron/__init__.py").touch()
    (clone / "kd_megatron/__main__.py").write_text(WORKER)
    return clone


def write_script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def launch(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(directory / "launch.sh"), *arguments]
    # Another test of this process may have joined a process group.
    not_ours = ("OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in not_ours}
    return subprocess.run(
        command, cwd="/", env=inherited | environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def dry_run(directory: Path, *arguments: str, **environment: str) -> list[str]:
    done = launch(directory, *arguments, DRY_RUN="1", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_dry_run_in_a_fresh_clone_shows_the_set_up_and_does_nothing(clone):
    commands = dry_run(clone, "demo", KD_PIP_ARGS="--extra-index-url https://example.org/whl", KD_PYTHON=sys.executable)
    assert commands[0].startswith(f"{sys.executable} -m venv .venv")
    assert "install --extra-index-url https://example.org/whl -r requirements.txt" in commands[1]
    assert "--no-deps -e ." in commands[2]
    assert commands[3].strip().endswith(".venv/bin/python -m kd_megatron study recipes/demo.yaml")
    assert sorted(path.name for path in clone.iterdir()) == sorted(COPIED)


def test_a_dry_run_of_one_process(ready):
    (command,) = dry_run(ready, "--debug", "pretrain", "r.yaml", "notes=[a, b]")
    assert command.strip().endswith(r".venv/bin/python -m kd_megatron pretrain r.yaml notes=\[a\,\ b\] --debug")


@pytest.mark.parametrize(
    ("arguments", "settings", "threads"),
    [
        ([], {}, 8),  # cores
        (["--procs", "2"], {}, 4),
        (["--procs", "3"], {}, 2),
        (["--procs", "20"], {}, 1),
        (["--procs", "2"], {"OMP_NUM_THREADS": "5"}, 5),  # the user's own
        ([], {"OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_processes_share_the_cores_not_the_hardware_threads(ready, tmp_path, arguments, settings, threads):
    """On a machine of 2 sockets with 4 cores of 2 hardware threads each."""
    machine = [f"{cpu % 8 // 4},{cpu % 8}" for cpu in range(16)]
    for name, output in {"nproc": ["16"], "lscpu": ["# Socket,Core", *machine]}.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in output))
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    (command,) = dry_run(ready, *arguments, "pretrain", "r.yaml", PATH=path, **settings)
    assert f" OMP_NUM_THREADS={threads} " in command


def test_a_dry_run_of_two_processes(ready):
    (command,) = dry_run(ready, "--procs", "2", "pretrain", "r.yaml")
    assert " -m deepspeed.launcher.runner " in command
    assert " --num_gpus 2 " in command
    assert command.strip().endswith("--no_local_rank --module kd_megatron pretrain r.yaml")


def test_a_dry_run_on_hosts(ready, tmp_path):
    (tmp_path / "hosts").write_text("# two nodes\nnodea slots=1\nnodeb slots=1\n")
    (command,) = dry_run(ready, "--hosts", str(tmp_path / "hosts"), "study", "r.yaml", GLOO_SOCKET_IFNAME="eth7")
    for part in (
        f"--hostfile {tmp_path}/hosts",
        "--master_addr nodea",
        "GLOO_SOCKET_IFNAME=eth7",
        "ServerAliveInterval",
    ):
        assert part in command
    assert f"--venv_script {ready}/.venv/bin/activate" in command


def test_a_dry_run_of_the_tests_checks_first(ready):
    programs = [command.split()[2] for command in dry_run(ready, "test", "tests/cli", "-k", "name")]
    assert programs == ["ruff", "ruff", "mypy", "pytest"]


def test_changed_requirements_are_installed(ready):
    with (ready / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    assert "install -r requirements.txt" in dry_run(ready, "plan", "r.yaml")[0]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("demo", "--help"), ("test", "--help")])
def test_help_needs_no_set_up(clone, arguments):
    done = launch(clone, *arguments)
    assert "usage: ./launch.sh" in (done.stdout if arguments else done.stderr)
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--procs",), "--procs needs a value"),
        (("--procs", "0", "study"), "--procs 0"),
        (("--procs", "two", "study"), "--procs two"),
        (("--procs", "2", "--hosts", "h", "study"), "both given"),
        (("--procs", "2", "prepare", "r.yaml"), "prepare runs as one process"),
        (("--hosts", "no-such-file", "study", "r.yaml"), "no-such-file is missing or empty"),
        (("--prosc", "2", "study"), "unknown option --prosc"),
    ],
)
def test_wrong_options_are_one_clear_message(ready, arguments, message):
    done = launch(ready, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "line " not in done.stderr  # a message of bash itself


def test_a_python_without_venv_names_the_package(clone):
    python = write_script(clone / "bare_python", f'[[ $2 == *ensurepip* ]] && exit 1; exec "{sys.executable}" "$@"')
    done = launch(clone, "plan", "r.yaml", KD_PYTHON=str(python))
    assert done.returncode == 2
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_no_python_is_a_clear_message(clone):
    done = launch(clone, "plan", "r.yaml", KD_PYTHON="python-of-nowhere")
    assert done.returncode == 2
    assert "no Python 3.11 or newer" in done.stderr


def start_workers(
    directory: Path, request: pytest.FixtureRequest
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """launch.sh with two ranks, and all processes below it, once both ranks run."""
    script = subprocess.Popen(
        [str(directory / "launch.sh"), "--procs", "2", "pretrain", "r.yaml"], stdout=subprocess.PIPE, text=True
    )
    request.addfinalizer(script.kill)
    assert script.stdout is not None
    lines = sorted(script.stdout.readline().strip() for _ in range(2))
    assert lines == ["rank 0 of 2 pretrain r.yaml", "rank 1 of 2 pretrain r.yaml"]
    return script, psutil.Process(script.pid).children(recursive=True)


@pytest.mark.parametrize(("signal_sent", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_outlives_launch(ready, request, signal_sent, exit_code):
    """SIGTERM reaches the workers, whose exit code comes through; kill -9 ends everything below too."""
    script, processes = start_workers(ready, request)
    assert len(processes) >= 4  # the deepspeed runner, its launcher, two ranks
    script.send_signal(signal_sent)
    assert script.wait(PATIENCE_SECONDS) == exit_code
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert not alive


@pytest.mark.long
def test_an_interrupted_set_up_is_continued_and_two_at_once_do_not_collide(clone):
    """The real set-up with the installer alone: killed after a second, then started twice."""
    (clone / "requirements.txt").write_text("setuptools>=77\n")
    (clone / "kd_megatron").mkdir()
    (clone / "kd_megatron/__init__.py").write_text('__version__ = "0"\n')
    (clone / "kd_megatron/__main__.py").write_text("print('ran')\n")
    command = [str(clone / "launch.sh"), "plan"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as first:
        time.sleep(1)
        os.killpg(first.pid, signal.SIGKILL)
    assert not (clone / ".venv/installed.sha256").exists()
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(out.endswith("ran\n") for out, _ in outputs)
    assert sum("another launch.sh is setting up" in err for _, err in outputs) == 1
