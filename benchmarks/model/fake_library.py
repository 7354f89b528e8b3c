"""Builds and loads fake_cuda.cpp, in about two seconds and once a process. It is for builds of PyTorch without CUDA."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from kd_megatron.errors import EnvironmentFault

SOURCE = Path(__file__).with_name("fake_cuda.cpp")


def missing() -> str | None:
    """Why fake CUDA cannot be had here; None where it can."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return f"torch {torch.__version__} has CUDA of its own; the fake one is for its CPU build"
    if shutil.which("g++") is None:
        return "there is no C++ compiler (g++)"
    if not (_torch() / "include" / "ATen" / "detail" / "CUDAHooksInterface.h").is_file():
        return f"torch {torch.__version__} came without its C++ headers"
    return None


@cache
def library() -> ctypes.CDLL:
    """The library, loaded. Raises `EnvironmentFault` where it cannot be built."""
    if reason := missing():
        raise _refused(reason)
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "fake_cuda.so"
        libraries = [f"-L{_torch() / 'lib'}", "-lc10", "-ltorch_cpu"]
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{_torch() / 'include'}", str(SOURCE)]
        done = subprocess.run([*command, "-o", str(built), *libraries], capture_output=True, text=True, check=False)
        if done.returncode:
            raise _refused(f"g++ does not build {SOURCE.name}: {done.stderr.strip().splitlines()[0]}")
        return ctypes.CDLL(str(built))


def _torch() -> Path:
    return Path(torch.__file__).parent


def _refused(reason: str) -> EnvironmentFault:
    return EnvironmentFault(
        given=f"fake CUDA: {reason}",
        expected="the CPU build of torch, with its C++ headers, and g++",
        fix="install them",
    )
