"""Whether Triton can build here what starts its kernels: a small C module, made at the first call of each kernel.

A wheel of Triton brings the compiler of the kernels themselves, not the C compiler, C library and Python headers that
this module is built with. A machine that has a driver and Python may have none of them, and a run on it would end at
its first kernel.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

PROGRAM = "#include <stdlib.h>\n#include <Python.h>\nint answer(void) { return PY_MAJOR_VERSION; }\n"
PATIENCE_SECONDS = 60.0


def has_gpu() -> bool:
    """Whether this process could use one, by the driver's device file: nothing large is imported to ask."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def compiler_problems() -> list[str]:
    """One line that says what is missing and what to install; none where the module can be built, or has no use."""
    return build_problems() if has_gpu() else []


def build_problems() -> list[str]:
    """Build a module as Triton does, with the compiler that it would take; a line when that fails."""
    packages = f"gcc libc6-dev python{sysconfig.get_python_version()}-dev"
    fix = f"to fix: apt install {packages} (Debian, Ubuntu), or set CC to a C compiler"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return [f"has no C compiler (gcc, clang or CC), with which Triton builds what starts its kernels; {fix}"]
    include = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "module.c"
        source.write_text(PROGRAM, encoding="utf-8")
        command = [compiler, str(source), "-shared", "-fPIC", "-o", f"{directory}/module.so", f"-I{include}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [f"cannot run its C compiler {compiler}: {error}; {fix}"]
    if done.returncode == 0:
        return []
    said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
    said = said.replace(f"{directory}/", "")
    return [f"cannot build what starts Triton's kernels with {compiler} and the headers in {include}: {said}; {fix}"]
