"""What a run was made of: commit, versions, hardware, data and teacher. Equal fingerprints make runs comparable."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from kd_megatron import dist
from kd_megatron.data.loader import Loader
from kd_megatron.manifest import file_sha256

PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "numpy", "tokenizers")


def fingerprint(loader: Loader, teacher_path: str | None) -> dict[str, Any]:
    """Facts of this process and its inputs, as plain data."""
    return {
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
            "num_processes": dist.world_size(),
            "num_threads_per_process": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "data": loader.content_hash,
        "tokenizer": loader.tokenizer_sha256,
        "teacher": _weights_hash(teacher_path),
    }


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), *arguments]
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


def _weights_hash(path: str | None) -> str | None:
    """sha256 of a local model's weights; a hub id stands for itself."""
    if path is None:
        return None
    files = sorted(Path(path).glob("*.safetensors"))
    return "+".join(file_sha256(file)[:16] for file in files) or path
