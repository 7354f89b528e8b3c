"""The other nodes: their list, which is deepspeed's hostfile, and commands on them over ssh."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_megatron.errors import RecipeError

# A dead link is noticed after 15 seconds; a question is never asked of a person. Options given by the user win.
OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=ERROR")
NO_DIRECTORY, NO_VENV, NOT_REACHED = 97, 98, 255  # exit codes; the last is ssh's own

# What a run's processes read, and what deepspeed would pass on. Tokens and keys are not: command lines can be seen.
PASSED_PREFIXES = ("KD_", "GLOO_", "NCCL_", "UCX_", "TORCH_", "MALLOC_")
PASSED = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH", "PYTHONWARNINGS")
NOT_PASSED = ("KD_NODE", "KD_RUN_ID", "KD_STDIN_SIGNALS", "KD_SSH_ARGS", "KD_PYTHON", "KD_PIP_ARGS")


def ssh_command(host: str, remote: str) -> list[str]:
    """``ssh`` running ``remote`` (a line of shell) on ``host``."""
    more = os.environ.get("KD_SSH_ARGS") or os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    options = [word for option in OPTIONS for word in ("-o", option)]
    return ["ssh", "-T", *shlex.split(more), *options, host, remote]


def in_repository(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """The line of shell that runs ``words`` in this directory of another node, with ``environment`` added."""
    place = shlex.quote(str(Path.cwd()))
    lines = [f"cd {place} 2>/dev/null || exit {NO_DIRECTORY}", f"test -x .venv/bin/python || exit {NO_VENV}"]
    settings = [f"{name}={value}" for name, value in environment.items()]
    return "; ".join([*lines, "exec " + shlex.join(["env", *settings, *words])])


def failure(code: int, stderr: str) -> str:
    """Why a command of `in_repository` ended with ``code``, to be read after the node's name."""
    last = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit code {code}"
    if code == NOT_REACHED:
        return f"does not answer ssh: {last}"
    if code == NO_DIRECTORY:
        return f"has no directory {Path.cwd()}"
    if code == NO_VENV:
        return f"has no {Path.cwd()}/.venv; to fix: run ./launch.sh preflight there once"
    return f"cannot be asked: {last}"


def passed_environment() -> dict[str, str]:
    """The variables that every node is given: ours, and the lines of deepspeed's ``.deepspeed_env``."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(PASSED_PREFIXES) or name in PASSED) and name not in NOT_PASSED
    }
    return deepspeed_environment() | ours


def deepspeed_environment() -> dict[str, str]:
    """``NAME=value`` lines of DS_ENV_FILE, otherwise of ``.deepspeed_env`` in the home directory and here."""
    named = os.environ.get("DS_ENV_FILE")
    files = [Path(named)] if named else [Path.home() / ".deepspeed_env", Path(".deepspeed_env")]
    found: dict[str, str] = {}
    for file in files:
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            found |= dict(line.strip().split("=", 1) for line in lines if "=" in line)
    return found


@dataclass(frozen=True)
class Host:
    """One node: the name that ssh knows, and how many processes it runs."""

    name: str
    slots: int


def read_hostfile(path: Path | str) -> list[Host]:
    """The nodes in order; the first is where ranks meet. Raises `RecipeError` for a line that is not one."""
    expected = "lines such as 'node1 slots=8'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    lines = [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]
    if not lines:
        raise RecipeError(given=f"hostfile {path} is missing or empty", expected=expected, fix="write one")
    hosts = []
    for line in lines:
        match = re.fullmatch(r"([\w.@:-]+)\s+slots=([1-9]\d*)", line)
        if match is None or match[1].startswith("-"):
            raise RecipeError(given=f"hostfile {path}: line {line!r}", expected=expected, fix="correct the line")
        hosts.append(Host(match[1], int(match[2])))
    names = [host.name for host in hosts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            given=f"hostfile {path} names {', '.join(twice)} twice",
            expected="each node once",
            fix="put all its processes into one line",
        )
    return hosts
