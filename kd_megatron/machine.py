"""What a measurement was made with: commit, versions, processor. Needs torch alone, so that any machine can say it, and
that only where a device is asked about: `launch.sh` asks every node for the rest and has no two seconds to spare."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]


def facts(packages: Iterable[str]) -> dict[str, Any]:
    """What every recorded figure is kept with, as plain data."""
    import torch

    return {
        "commit": commit(),
        "uncommitted_changes": uncommitted_changes(),
        "versions": versions(packages),
        "hardware": {
            "device": device_name(),
            "num_threads_per_process": torch.get_num_threads(),
            "memory_gib": round(memory_bytes() / 2**30, 1),
        },
    }


def commit() -> str:
    """The checkout's commit; in an image the one it was built from; or a note that there is none."""
    return _git("rev-parse", "HEAD") or os.environ.get("KD_COMMIT") or "not a git checkout"


def uncommitted_changes() -> bool:
    """Whether tracked files differ from the commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


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


def free_memory_bytes(device: "torch.device") -> int:
    """What can still be allocated on ``device``."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return memory_bytes() // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
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
