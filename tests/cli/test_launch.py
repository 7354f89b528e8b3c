"""launch.sh: what it would run, its messages, and that nothing outlives it. The scripts and launchers here are real;
only the program that the launcher starts is a small one, so that no training is needed."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kd_megatron.errors import EnvironmentFault
from kd_megatron.launch import node

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("launch.sh", "requirements.txt", "pyproject.toml")
PATIENCE_SECONDS = 120  # for an event that has to come: only a hang takes this long

WORKER = """
import os, signal, sys, time
from pathlib import Path
if (codes := Path("exit_codes")).is_file():  # the first line says how this call ends
    first, _, rest = codes.read_text().partition(" ")
    codes.write_text(rest)
    print("ends with", first, flush=True)
    sys.exit(int(first)) if int(first) >= 0 else os.kill(os.getpid(), -int(first))
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN if "stubborn" in sys.argv else lambda *_: sys.exit(75))
rank, ranks = (os.environ.get(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
os.write(1, f"rank {rank} of {ranks} {' '.join(sys.argv[1:])}\\n".encode())
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
    for package in ("launch", "files", "machine", "ranks", "recipe", "console"):
        shutil.copytree(ROOT / f"kd_megatron/{package}", clone / f"kd_megatron/{package}")
    for name in ("__init__", "errors", "redact"):
        shutil.copy(ROOT / f"kd_megatron/{name}.py", clone / "kd_megatron")
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
        (["--procs", "2"], {}, 4),  # of 8 cores
        (["--procs", "3"], {}, 2),
        (["--procs", "20"], {}, 1),
        (["--procs", "2"], {"OMP_NUM_THREADS": "5"}, 5),  # the user's own
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
    call = "-m kd_megatron.launch.node --rank 0 --slots 2 --master 127.0.0.1:FREE_PORT pretrain r.yaml"
    assert command.strip().endswith(call)


def test_a_dry_run_of_one_node_of_three(ready):
    nodes = ["--node-rank", "1", "--num-nodes", "3", "--master", "node1:4321", "--procs", "8"]
    (command,) = dry_run(ready, *nodes, "pretrain", "r.yaml")
    wanted = shlex.split("--rank 1 --slots 8,8,8 --master node1:4321 pretrain r.yaml")
    assert shlex.split(command)[-len(wanted) :] == wanted


def test_a_dry_run_on_hosts(ready, tmp_path):
    (tmp_path / "hosts").write_text("# two nodes\nnodea slots=1\nnodeb slots=1\n")
    hosts = ["--hosts", str(tmp_path / "hosts")]
    settings = {"GLOO_SOCKET_IFNAME": "eth7", "KD_SSH_ARGS": "-F own_config", "NCCL_DEBUG": "INFO"}
    settings |= {"HF_TOKEN": "secret"}
    first, second = dry_run(ready, *hosts, "study", "r.yaml", "notes=a 'b", **settings)
    assert first.startswith("ssh -T -F own_config ")
    for part in ("ServerAliveInterval", " nodea ", f"cd {ready}", "GLOO_SOCKET_IFNAME=eth7", "NCCL_DEBUG=INFO"):
        assert part in first
    remote = shlex.split(shlex.split(second)[-1].rpartition("; ")[2])
    assert " nodeb " in second
    assert "secret" not in second
    nodes = ["--node-rank", "1", "--num-nodes", "2", "--master", "nodea:29500", "--procs", "1,1"]
    assert remote[remote.index("./launch.sh") :] == ["./launch.sh", *nodes, "study", "r.yaml", "notes=a 'b"]


def documented_calls() -> list[list[str]]:
    """The calls of launch.sh in the indented blocks of docs/multi_node.md."""
    page = (ROOT / "docs/multi_node.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ {4,}\./launch\.sh (.*)$", page, flags=re.MULTILINE)
    return [shlex.split(line.partition(" >")[0]) for line in lines]


@pytest.mark.parametrize("call", documented_calls(), ids=" ".join)
def test_the_documented_calls_for_many_nodes_are_understood(ready, call):
    (ready / "hostfile").write_text("node1 slots=8\nnode2 slots=8\n")
    assert dry_run(ready, *call)


def test_the_documents_show_every_way_to_many_nodes():
    assert {"--hosts", "--node-rank", "--slurm", "--restarts"} <= {word for call in documented_calls() for word in call}


def test_a_dry_run_of_the_tests_checks_first(ready):
    programs = [command.split()[2] for command in dry_run(ready, "test", "tests/cli", "-k", "name")]
    assert programs == ["ruff", "ruff", "mypy", "pytest"]


def test_all_the_tests_are_the_long_ones_too(ready):
    *_, command = dry_run(ready, "test", "--all", "-x")
    assert shlex.split(command)[-3:] == ["-m", "not throughput", "-x"]


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
        (("--restarts", "many", "study"), "--restarts many"),
        (("--node-rank", "0", "study"), "--num-nodes is missing"),
        (("--node-rank", "2", "--num-nodes", "2", "--master", "a", "study"), "--node-rank 2"),
        (("--node-rank", "0", "--num-nodes", "2", "study"), "--master is missing"),
        (("--node-rank", "0", "--num-nodes", "2", "--master", "a", "--procs", "1,1,1", "study"), "--procs 1,1,1"),
        (("--slurm", "study"), "--num-nodes is missing"),
        (("--slurm", "--hosts", "h", "study"), "both given"),
    ],
)
def test_wrong_options_are_one_clear_message(ready, arguments, message):
    done = launch(ready, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "line " not in done.stderr  # a message of bash itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"KD_GRACE_SECONDS": "2m"}, "KD_GRACE_SECONDS=2m"),
        ({"KD_GRACE_SECONDS": "090"}, "KD_GRACE_SECONDS=090"),
        ({"KD_LOST_SECONDS": "4.5"}, "KD_LOST_SECONDS=4.5"),
        ({"KD_RETURN_SECONDS": "5m"}, "KD_RETURN_SECONDS=5m"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT=abc"),
    ],
)
def test_a_setting_that_is_no_number_is_refused_before_anything_runs(ready, settings, message):
    done = launch(ready, "--procs", "2", "study", "r.yaml", **settings)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_accelerator_that_is_named_is_kept_and_none_is_sent_to_other_nodes(ready, tmp_path):
    (tmp_path / "hosts").write_text("n1 slots=1\n")
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    named = dry_run(ready, "study", "r.yaml", DS_ACCELERATOR="cuda", **no_gpu)
    assert "DS_ACCELERATOR=cuda" in " ".join(named)
    hosts = dry_run(ready, "--hosts", str(tmp_path / "hosts"), "study", "r.yaml", DS_ACCELERATOR="", **no_gpu)
    assert "DS_ACCELERATOR=cpu" not in " ".join(hosts)


def test_the_gpus_that_a_user_names_are_those_that_processes_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")  # as deepspeed's launcher has it
    monkeypatch.setenv(node.VISIBLE, "GPU-5a3f,GPU-77b2")
    node.see_devices()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5a3f,GPU-77b2"
    assert node.VISIBLE not in os.environ


@pytest.mark.parametrize("master", ["node1:0", "node1:99999", "node1:x"])
def test_a_port_that_is_none_is_refused(master):
    with pytest.raises(EnvironmentFault, match="port"):
        node.split_address(master)
    assert node.split_address("node1") == ("node1", node.DEFAULT_PORT)


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
    command = [str(directory / "launch.sh"), "--procs", "2", "--restarts", "3", "pretrain", "r.yaml"]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    request.addfinalizer(script.kill)
    assert script.stdout is not None
    lines = sorted(script.stdout.readline().strip() for _ in range(2))
    assert lines == ["rank 0 of 2 pretrain r.yaml", "rank 1 of 2 pretrain r.yaml"]
    return script, psutil.Process(script.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("signal_sent", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_outlives_launch(ready, request, signal_sent, exit_code):
    """SIGTERM reaches the workers, whose exit code comes through; kill -9 ends everything below too."""
    script, processes = start_workers(ready, request)
    assert len(processes) >= 4  # the deepspeed launcher, two ranks, the keeper
    script.send_signal(signal_sent)
    assert script.wait(PATIENCE_SECONDS) == exit_code
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert not alive


def test_a_process_that_does_not_stop_is_killed_after_its_grace_and_not_restarted(ready, request):
    command = [str(ready / "launch.sh"), "--restarts", "3", "pretrain", "stubborn"]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"KD_GRACE_SECONDS": "2"})
    request.addfinalizer(script.kill)
    assert script.stdout is not None
    assert script.stdout.readline().startswith("rank 0 of 1")
    script.send_signal(signal.SIGTERM)
    assert script.wait(PATIENCE_SECONDS) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("codes", "restarts", "exit_code", "runs"),
    [
        ("9 1 0", 2, 0, 3),
        ("-9 0", 1, 0, 2),  # killed
        ("9 9 0", 1, 9, 2),
        ("1 0", 0, 1, 1),
        ("3 0", 5, 3, 1),  # to be mended by a person
        ("75 0", 5, 75, 1),  # asked to stop
        ("130 0", 5, 130, 1),
        ("255 141 0", 5, 141, 2),
    ],
)
def test_a_restart_follows_what_may_pass(ready, codes, restarts, exit_code, runs):
    (ready / "exit_codes").write_text(codes)
    done = launch(ready, "--restarts", str(restarts), "pretrain", "r.yaml")
    assert done.returncode == exit_code
    assert done.stdout.count("ends with") == runs
    said = [line for line in done.stderr.splitlines() if line.startswith("restart ")]
    assert [line.split(":")[0] for line in said] == [f"restart {n} of {restarts}" for n in range(1, runs)]


def test_the_batch_script_of_slurm_is_one_that_bash_can_read(ready, tmp_path):
    job = ["--slurm", "--nodes", "4", "--procs", "8", "--restarts", "2", "pretrain", "r.yaml", "notes=it's a b"]
    script = launch(ready, *job).stdout
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --signal=B:USR1@300\n" in script
    (tmp_path / "job").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path / "job"], capture_output=True, text=True).stderr == ""


def test_a_job_of_slurm_counts_its_crashes_and_not_its_time_limits(ready, tmp_path):
    write_script(tmp_path / "bin/srun", 'exit "$CODE"')
    write_script(tmp_path / "bin/scontrol", f"[[ $1 == show ]] && echo n1 || echo requeued >> {tmp_path}/log")
    (tmp_path / "job").write_text(launch(ready, "--slurm", "--nodes", "1", "--restarts", "2", "study", "r.yaml").stdout)
    settings = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for number, code in enumerate((75, 75, 75, 9, 75, 1, 9)):  # the last is a third crash
        told = {"CODE": str(code), "SLURM_RESTART_COUNT": str(number)}
        done = subprocess.run(["bash", tmp_path / "job"], env=os.environ | settings | told, capture_output=True)
        assert done.returncode == code
    assert len((tmp_path / "log").read_text().splitlines()) == 6


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
