"""What a measurement was made with: commit, versions, processor. Needs torch alone, so that any machine can say it, and
that only where a device is asked about: `launch.sh` asks every node for the rest and has no two seconds to spare."""

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NO_COMMIT = "not a git checkout"
CODE = ("kd_megatron", "data_prep", "ds_configs")  # of this repository: what numbers depend on


def facts(packages: Iterable[str]) -> dict[str, Any]:
    """What every recorded figure is kept with, as plain data."""
    import torch

    return {
        "commit": commit(),
        "uncommitted_changes": uncommitted_changes(),
        "uncommitted_hash": uncommitted_hash(),
        "versions": versions(packages),
        "hardware": {
            "device": device_name(),
            "num_threads_per_process": torch.get_num_threads(),
            "memory_gib": round(memory_bytes() / 2**30, 1),
        },
    }


@functools.cache
def commit() -> str:
    """The checkout's commit when this process first asked; an image's; or a note that there is none."""
    return _git("rev-parse", "HEAD") or os.environ.get("KD_COMMIT") or NO_COMMIT


@functools.cache
def uncommitted_changes() -> bool:
    """Whether tracked files that numbers depend on differed from the commit when this process first asked."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", *CODE))


@functools.cache
def uncommitted_hash() -> str | None:
    """A short hash of how the code differed from the commit when this process first asked; None: it did not.

    Of what numbers depend on alone: documents, tests and recipes may be edited while a study goes on.
    """
    changed = _git("diff", "HEAD", "--no-ext-diff", "--no-color", "--", *CODE)
    untracked = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *(f"{place}/*.py" for place in CODE))
    if not changed and not untracked:
        return None
    digest = hashlib.sha256(changed.encode())
    for path in (ROOT / name for name in untracked.split("\0") if (ROOT / name).is_file()):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python and of every package, ``"absent"`` where there is none."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def device_name() -> str:
    """The GPU's name, otherwise the processor's with its number of cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()


def memory_bytes() -> int:
    """The size of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return (
            subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode(errors="replace").strip()
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"
