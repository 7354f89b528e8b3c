"""What Triton builds at a kernel's first call can be built, or preflight says what is missing."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from kd_megatron.launch import compiler, facts


@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("clang") is None, reason="no C compiler here")
def test_nothing_is_said_where_a_module_can_be_built() -> None:
    if (Path(sysconfig.get_path("include")) / "Python.h").exists():
        assert compiler.build_problems() == []


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    (line,) = compiler.build_problems()
    assert line.startswith("has no C compiler")
    assert f"apt install gcc libc6-dev python{sysconfig.get_python_version()}-dev" in line


def test_missing_headers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda name: str(tmp_path))
    (line,) = compiler.build_problems()
    assert "Python.h" in line
    assert str(tmp_path) in line


def test_a_compiler_that_is_no_program_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    (line,) = compiler.build_problems()
    assert "/no/such/compiler" in line


@pytest.mark.parametrize(("gpu", "expected"), [(True, ["has no compiler"]), (False, [])])
def test_only_a_machine_with_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, gpu: bool, expected: list[str]) -> None:
    monkeypatch.setattr(compiler, "has_gpu", lambda: gpu)
    monkeypatch.setattr(compiler, "build_problems", lambda: ["has no compiler"])
    monkeypatch.setenv("KD_MIN_FREE_GIB", "0")
    assert facts.problems() == expected
