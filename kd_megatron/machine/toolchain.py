"""Whether this machine can compile what Triton needs: a launcher in C for every kernel, against Python's headers."""

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

PATIENCE_SECONDS = 60.0
SOURCE = "#include <stdint.h>\n#include <Python.h>\nint kd_toolchain(void) { return PY_MAJOR_VERSION; }\n"
FIX = "apt install gcc libc6-dev python3.11-dev (Debian, Ubuntu; the Python that .venv was made from), or set CC"


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded. Asked without torch, whose import takes seconds."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


@functools.cache
def problem() -> str | None:
    """What is missing to compile a small C extension of this Python; None where that works."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # Triton looks in this order
    if compiler is None:
        return "no C compiler (CC, gcc or clang)"
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").is_file():
        return f"no headers of Python: {include} has no Python.h"
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "toolchain.c"
        source.write_text(SOURCE, encoding="utf-8")
        command = [compiler, str(source), "-shared", "-fPIC", f"-I{include}", "-o", f"{directory}/toolchain.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the C compiler {compiler} cannot be run: {error}"
    if done.returncode:
        return f"{compiler} cannot compile an extension of Python: {_first_error(done.stderr)}"
    return None


def _first_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")
