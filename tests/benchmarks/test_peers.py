"""Peers: steps on request through a pipe; what is not installed, ends or hangs on a closed pipe is dealt with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_study import tiny_study, write_inputs

from benchmarks.steps import peers
from kd_megatron.errors import EnvironmentFault

# A program that takes its turns as the real ones do, by their own module, and ends in its fourth step.
STAND_IN = """
import sys
sys.path.insert(0, {programs!r})
import turns
print("a library prints this")
given = turns.task()
version = turns.require("numpy")
for answer in ("ready " + version, "done", "done"):
    turns.say(answer)
    if not sys.stdin.readline():
        sys.exit(0)
"""


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs")


def use(monkeypatch: pytest.MonkeyPatch, directory: Path, program: str) -> None:
    directory.mkdir()
    for name in ("huggingface_trainer", "minilm_bertdistiller"):
        (directory / f"{name}.py").write_text(program)
    monkeypatch.setattr(peers, "PROGRAMS", directory)


def test_each_turn_is_one_answer_and_an_early_end_is_an_error(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tmp_path / "programs", STAND_IN.format(programs=str(peers.PROGRAMS)))
    with peers.started(tiny_study(inputs), str(inputs / "teacher"), None) as started:
        shapes = {(peer.name, peer.shape, peer.ratio_to, peer.dtype) for peer in started}
        assert shapes == {
            ("peer/huggingface_trainer", "B16 L16", "scratch", "fp32"),
            ("peer/huggingface_trainer", "B8 L16", "scratch", "fp32"),
            ("peer/bertdistiller", "B8 L16 R4", "minilm", "fp32"),
        }
        assert {peer.version for peer in started} == {f"numpy {np.__version__}"}
        peer = started[0]
        peer.step()
        peer.step()
        with pytest.raises(EnvironmentFault, match="ended in the middle"):
            peer.step()
        processes = [each._process for each in started]
    assert all(process.poll() is not None for process in processes)


def test_a_peer_whose_package_is_absent_is_left_out_with_the_reason(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    program = STAND_IN.format(programs=str(peers.PROGRAMS)).replace('"numpy"', '"no-such-package"')
    use(monkeypatch, tmp_path / "programs", program)
    with peers.started(tiny_study(inputs), str(inputs / "teacher"), None) as started:
        assert started == []
    shown = " ".join(capsys.readouterr().err.split())
    assert "peer/bertdistiller is left out: the package no-such-package is not installed" in shown


def test_a_peer_that_fails_is_left_out_with_its_message(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    use(monkeypatch, tmp_path / "programs", "raise ValueError('no such trainer argument')")
    with peers.started(tiny_study(inputs), str(inputs / "teacher"), None) as started:
        assert started == []
    assert "ValueError: no such trainer argument" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["huggingface_trainer", "minilm_bertdistiller"])
def test_the_programs_need_nothing_of_ours(program: str, tmp_path: Path):
    """Without their packages they say so, in an interpreter that sees no other module."""
    done = subprocess.run(
        [sys.executable, "-S", str(peers.PROGRAMS / f"{program}.py"), json.dumps({})],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout[:7]) == (0, "absent ")
