"""`gpu_check.sh`, dry, with versions that a GPU machine may have: Python 3.12, torch 2.11, its Triton, NumPy 2.5."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch==2.11.*", "numpy==2.5.*")


def run(*command: str | Path, seconds: float, **environment: str) -> "subprocess.CompletedProcess[str]":
    not_theirs = ("TRITON_INTERPRET", "OUT", "PYTHONPATH", "PYENV_VERSION")
    inherited = {name: value for name, value in os.environ.items() if name not in not_theirs}
    return subprocess.run(
        command, env=inherited | environment, cwd="/", capture_output=True, text=True, timeout=seconds, check=False
    )


@functools.cache
def python_3_12() -> str | None:
    """A Python 3.12 of this machine, also one of pyenv that is not chosen."""
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.12.*/bin/python"))
    found = [os.environ.get("KD_PYTHON_312"), *map(str, pyenv), shutil.which("python3.12")]
    works = "import sys, venv; assert sys.version_info[:2] == (3, 12)"
    return next((one for one in found if one and run(one, "-c", works, seconds=60).returncode == 0), None)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with these packages: one that KD_PYTHON_OTHER_VERSIONS names, or one that is made now."""
    if given := os.environ.get("KD_PYTHON_OTHER_VERSIONS"):
        return Path(given)
    base = python_3_12()
    if base is None:
        pytest.skip("no Python 3.12 here")
    directory = tmp_path_factory.mktemp("other_versions")
    assert run(base, "-m", "venv", directory, seconds=120).returncode == 0
    python = directory / "bin/python"
    try:
        made = run(python, "-m", "pip", "install", "--quiet", *PACKAGES, seconds=1200)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{', '.join(PACKAGES)} could not be installed in 20 minutes")
    if made.returncode != 0:
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed here: {made.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_kernels_dry_run_with_other_versions(environment: Path, tmp_path: Path) -> None:
    done = run(
        *(ROOT / "benchmarks/gpu_check.sh", "--dry-run", "--only", "kernels", "--output", tmp_path / "out"),
        seconds=500,
        KD_PYTHON=str(environment),
        KD_WHEELS=str(tmp_path),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out/gpu_check.json").read_text(encoding="utf-8"))
    assert record["versions"]["torch"].startswith("2.11.")
    assert record["versions"]["numpy"].startswith("2.5.")
    assert record["red"] == []
    assert "triton" in {check["backend"] for check in record["checks"]}
