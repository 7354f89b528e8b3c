"""The set-up installs by hash: the lock files agree with requirements.txt, the right one is picked, and a package
whose bytes are not the locked ones is refused. launch.sh and pip are real; the packages are tiny."""

import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements-cpu.lock", "requirements-cuda.lock")
HAS_LOCK = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info[:2] <= (3, 13)

FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"pip index versions torch"*) [[ -n $OFFERED ]] || exit 1; echo "Available versions: $OFFERED" ;;
    *"pip --disable-pip-version-check install"*) echo "$*" >> installed.txt ;;
    *"-m kd_megatron"*) echo ran ;;
    *) exec "{python}" "$@" ;;
esac
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Package -> version of every line NAME==VERSION."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(), flags=re.MULTILINE)
    return {normal(name): version for name, version in found}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_agrees_with_the_requirements(name: str):
    locked = pins(ROOT / name)
    for package, version in pins(ROOT / "requirements.txt").items():
        assert locked[package].split("+")[0] == version, package
    assert "triton" in locked  # a range there
    low, high = re.findall(r"^triton>=([\d.]+),<([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[0]
    assert Version(low) <= Version(locked["triton"]) < Version(high)


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_of_a_lock_has_a_version_and_hashes_and_nothing_else(name: str):
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?! )", text.strip().replace(" \\\n", " "))
    assert len(entries) > 80
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9._-]+==[\w.+]+( +--hash=sha256:[0-9a-f]{64})+", entry), entry[:80]


def test_only_the_cuda_lock_has_cuda():
    cpu, cuda = (pins(ROOT / name) for name in LOCKS)
    assert cpu["torch"] == cuda["torch"] + "+cpu"
    gpu_only = {name for name in cuda if name.startswith(("nvidia-", "cuda-"))}
    assert gpu_only
    assert cuda.keys() - gpu_only == cpu.keys()
    assert {name for name in cpu if cpu[name] != cuda.get(name)} == {"torch", "triton"}  # torch says which triton


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with launch.sh and the files it installs from, and no .venv."""
    for name in ("launch.sh", "requirements.txt", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def launch(clone: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    ours = ("KD_PIP_ARGS", "KD_PYTHON", "KD_LOCKED", "DRY_RUN")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", *ours))}
    environment["PIP_CONFIG_FILE"] = os.devnull
    return subprocess.run(
        [str(clone / "launch.sh"), "plan"], env=inherited | environment, capture_output=True, text=True, timeout=300
    )


def with_fake_python(clone: Path) -> Path:
    """A .venv whose pip offers what OFFERED says and installs nothing."""
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON.replace("{python}", sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return clone


@pytest.mark.skipif(not HAS_LOCK, reason="lock files are for Linux on x86_64 and Python 3.11 to 3.13")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has CUDA: other files are picked")
@pytest.mark.parametrize(
    ("offered", "locked", "expected"),
    [
        ("2.15.0, 2.13.0+cpu, 2.13.0", "", "--require-hashes -r requirements-cpu.lock"),
        ("2.15.0, 2.13.0, 2.12.1", "", "--require-hashes -r requirements-cuda.lock"),  # PyPI alone: its torch has CUDA
        ("2.13.0+cu126, 2.13.0", "", "-r requirements.txt"),
        ("", "", "-r requirements.txt"),  # the index was not reached, or KD_PIP_ARGS is not for it
        ("2.13.0+cpu, 2.13.0", "0", "-r requirements.txt"),
    ],
)
def test_which_file_is_installed(clone: Path, offered: str, locked: str, expected: str):
    done = launch(with_fake_python(clone), OFFERED=offered, KD_LOCKED=locked)
    assert done.returncode == 0, done.stderr
    first, second = (clone / "installed.txt").read_text().splitlines()
    assert first.endswith("install " + expected)
    assert second.endswith("--no-deps -e .")
    assert f"installing {expected.split()[-1]}" in done.stderr  # and it says so


def test_without_a_lock_that_fits_kd_locked_is_a_clear_error(clone: Path):
    done = launch(with_fake_python(clone), OFFERED="", KD_LOCKED="1")
    assert done.returncode == 2
    assert "KD_LOCKED=1, and no lock file fits" in done.stderr
    assert not (clone / "installed.txt").exists()


def test_a_changed_lock_is_installed_again(clone: Path):
    assert launch(with_fake_python(clone), OFFERED="", KD_LOCKED="0").stderr.startswith("set-up 2/3")
    assert launch(clone, OFFERED="", KD_LOCKED="0").stderr == ""
    with (clone / LOCKS[0]).open("a") as file:
        file.write("# changed\n")
    assert launch(clone, OFFERED="", KD_LOCKED="0").stderr.startswith("set-up 2/3")


def write_wheel(directory: Path, name: str, version: str) -> Path:
    directory.mkdir(exist_ok=True)
    wheel, info = directory / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.skipif(not HAS_LOCK, reason="lock files are for Linux on x86_64 and Python 3.11 to 3.13")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has CUDA: other files are picked")
def test_a_package_with_other_bytes_is_refused(clone: Path):
    """The real venv and pip, packages from a directory: the good one is taken, the altered one ends the set-up."""
    wheel = write_wheel(clone / "wheels", "torch", "2.13.0+cpu")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = clone / "requirements-cpu.lock"
    index = f"--no-index --find-links {clone / 'wheels'}"
    messages = []
    for expected in (digest, digest[::-1]):
        lock.write_text(f"torch==2.13.0+cpu --hash=sha256:{expected}\n")
        done = launch(clone, KD_PIP_ARGS=index, KD_LOCKED="1", KD_PYTHON=sys.executable, PIP_FORCE_REINSTALL="1")
        assert done.returncode != 0  # the first time at the next step: no build tools are in the directory
        messages.append(done.stdout + done.stderr)
    assert "Successfully installed torch-2.13.0+cpu" in messages[0]
    assert "DO NOT MATCH THE HASHES" in messages[1]
    assert "requirements-cpu.lock could not be installed" in messages[1]
    assert not (clone / ".venv/installed.sha256").exists()
