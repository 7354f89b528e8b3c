"""Whether C code for this Python can be compiled is found by compiling some."""

import shutil
import sysconfig
from collections.abc import Iterator

import pytest

from kd_megatron.launch import facts
from kd_megatron.machine import toolchain


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    toolchain.problem.cache_clear()
    yield
    toolchain.problem.cache_clear()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert toolchain.problem() is None
    toolchain.problem.cache_clear()
    monkeypatch.setenv("CC", "/bin/false")
    assert toolchain.problem() == "/bin/false cannot compile an extension of Python: no message"
    toolchain.problem.cache_clear()
    monkeypatch.setenv("CC", "/no/compiler")
    assert "/no/compiler cannot be run" in str(toolchain.problem())
    toolchain.problem.cache_clear()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert toolchain.problem() == f"no headers of Python: {tmp_path} has no Python.h"


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert toolchain.problem() == "no C compiler (CC, gcc or clang)"


def test_preflight_asks_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "problem", lambda: "no C compiler (CC, gcc or clang)")
    monkeypatch.setattr(toolchain, "has_gpu", lambda: False)
    assert facts.compiler_problems() == []
    monkeypatch.setattr(toolchain, "has_gpu", lambda: True)
    (line,) = facts.problems()
    assert line.startswith("has a GPU, but no C compiler")
    assert "apt install gcc libc6-dev python3.11-dev" in line
    monkeypatch.setattr(toolchain, "problem", lambda: None)
    assert facts.problems() == []
