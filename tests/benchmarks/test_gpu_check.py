"""`benchmarks/gpu_check.sh`, dry: the kernels need torch, triton and nothing else; a red check or a fault ends with 1.

Of whole steps: tests/benchmarks/test_device_steps.py.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.device_check import DeviceCheck
from benchmarks.gpu.device_sizes import DRY_RUN, GPU
from benchmarks.gpu.report import Report
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl
from kd_megatron.kernels import score_mse
from kd_megatron.machine import facts

ROOT = Path(__file__).resolve().parents[2]
SCORES, VOCABULARY = ScoreMse(2, 6, (1, 8), (1, 8)), VocabCrossEntropy(6, 11, 4)
QUICK = replace(DRY_RUN, checked=[SCORES, VOCABULARY], timed=[SCORES, VOCABULARY], long=[], long_checked=[], tuned=[])


def bare_machine(directory: Path) -> dict[str, str]:
    """The environment of a Python that can import torch, triton and what they need, and nothing else."""
    shutil.copy(Path(__file__).with_name("only_torch.py"), directory / "sitecustomize.py")
    inherited = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "OUT")}
    own = {"PYTHONPATH": str(directory), "KD_PYTHON": sys.executable, "KD_WHEELS": str(directory)}
    return {**inherited, **own, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("module", ["rich", "pydantic", "psutil", "matplotlib", "transformers"])
def test_the_bare_machine_is_bare(module: str, tmp_path: Path):
    found = subprocess.run([sys.executable, "-c", f"import {module}"], env=bare_machine(tmp_path), capture_output=True)
    assert f"No module named '{module}'".encode() in found.stderr


def test_dry_run_on_a_bare_machine(tmp_path: Path):
    output = tmp_path / "made" / "by the run"
    found = subprocess.run(
        [ROOT / "benchmarks/gpu_check.sh", "--dry-run", "--output", output],
        env=bare_machine(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    record = json.loads((output / "gpu_check.json").read_text())
    assert {"date", "commit", "versions", "hardware", "rows", "checks", "red"} <= record.keys()
    assert record["red"] == []
    assert record["skipped"] == ["whole steps"]
    assert "no deepspeed, megatron, pydantic" in found.stdout
    checked = {(check["name"], check["backend"], check["dtype"]) for check in record["checks"]}
    for dtype in ("fp32", "bf16"):
        for name, backends in {
            "relation_kl": ("chunked", "triton"),
            "score_mse": ("closed_form", "tiled", "triton"),
            "vocab_kl": ("chunked",),
            "vocab_topk_kl": ("chunked",),
            "vocab_cross_entropy": ("chunked",),
        }.items():
            assert checked >= {(name, backend, dtype) for backend in ("eager", *backends)}
    assert {row["backend"] for row in record["rows"]} >= {"eager", "torch.compile", "triton", "chunked"}
    assert {row["name"] for row in record["bounds"]} == {row["name"] for row in record["rows"]}
    assert {trial["launch"] for trial in record["tuning"]} == {"forward", "backward", "tiles"}
    assert all(trial["p50_ms"] and not trial["fault"] for trial in record["tuning"])
    assert record["long"]
    assert (output / "gpu_check.txt").read_text() == found.stdout


def test_without_a_gpu_only_the_dry_run_runs(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [ROOT / "benchmarks/gpu_check.sh", "--output", tmp_path]
    found = subprocess.run(command, env=bare_machine(tmp_path), capture_output=True, text=True)
    assert found.returncode == 2
    assert "--dry-run needs none" in found.stderr


def test_each_half_can_have_all_the_time(tmp_path: Path):
    command = [ROOT / "benchmarks/gpu_check.sh", "--dry-run", "--only", "steps", "--output", tmp_path / "out"]
    found = subprocess.run(command, env=bare_machine(tmp_path), capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    record = json.loads((tmp_path / "out/gpu_check.json").read_text())
    assert (record["checks"], record["skipped"]) == ([], ["whole steps"])


def test_wheels_are_installed_where_packages_are_missing_and_only_for_the_run(tmp_path: Path):
    """A wheel that cannot be installed is said, and does not keep the kernels from being checked."""
    environment = {**bare_machine(tmp_path), "KD_WHEELS": str(tmp_path / "wheels"), "TMPDIR": str(tmp_path / "own")}
    for name in ("wheels", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "wheels/pydantic-2.0-cp27-none-win32.whl").write_bytes(b"")
    command = [ROOT / "benchmarks/gpu_check.sh", "--dry-run", "--minutes", "0", "--output", tmp_path / "out"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "wheels cannot be installed for Python 3." in found.stderr
    assert list((tmp_path / "own").iterdir()) == []


def pins(path: str) -> dict[str, str]:
    """Package -> version, of a list of requirements."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / path).read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_wheels_are_of_the_versions_that_are_installed_and_tested():
    carried, required = pins("benchmarks/gpu_wheels.txt"), pins("requirements.txt")
    assert {"deepspeed", "megatron-core", "transformers", "tokenizers", "pydantic"} <= carried.keys()
    for package, version in carried.items():
        assert version == required.get(package, importlib.metadata.version(package)), package


def run(planted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict]:
    backends = {"reference": score_mse.BACKENDS["reference"], "planted": planted}
    monkeypatch.setattr(score_mse, "BACKENDS", backends)
    report = Report(tmp_path, minutes=5)
    DeviceCheck(QUICK, report, report.end).run()
    return report.finish(), json.loads((tmp_path / "gpu_check.json").read_text())


def test_a_red_check_is_said_and_its_kernel_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference = score_mse.BACKENDS["reference"]
    exit_code, record = run(lambda *arguments: 1.001 * reference(*arguments), tmp_path, monkeypatch)
    assert exit_code == 1
    assert {line.partition(" B2")[0] for line in record["red"]} == {"score_mse planted"}
    assert {row["name"] for row in record["rows"]} == {"vocab_cross_entropy"}
    assert record["not_timed"] == ["score_mse B2 L6 H1 d8"]


def test_a_backend_that_fails_is_red_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments):
        raise RuntimeError("out of registers\nmore")

    exit_code, record = run(fails, tmp_path, monkeypatch)
    assert exit_code == 1
    assert record["red"][0] == "score_mse planted B2 L6 H1 d8 fp32: RuntimeError: out of registers"
    assert "Traceback" in (tmp_path / "gpu_check.txt").read_text()
    assert {check["name"] for check in record["checks"]} == {"score_mse", "vocab_cross_entropy"}


def test_what_the_time_does_not_allow_is_skipped_and_said_to_be(tmp_path: Path):
    report = Report(tmp_path, minutes=0.0)
    DeviceCheck(DRY_RUN, report, report.end).run()
    assert report.finish() == 0
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["rows"] == record["checks"] == []
    assert {"check", "speed", "long"} <= set(record["skipped"])


def test_the_run_on_a_gpu_covers_what_the_dry_run_does():
    for part in ("checked", "timed", "long", "long_checked", "tuned"):
        assert {type(case) for case in getattr(DRY_RUN, part)} <= {type(case) for case in getattr(GPU, part)}
    assert {case.length for pair in GPU.long for case in pair} == {4096, 8192}
    lengths = {case.length for case in GPU.checked if isinstance(case, ScoreMse)}
    assert {1, 128, 130, 200, 512} <= lengths


def test_what_matters_most_comes_first_and_few_variants_are_compiled():
    for cases in (GPU.checked, GPU.timed):
        first = next(place for place, case in enumerate(cases) if isinstance(case, RelationKl))
        assert {type(case) for case in cases[:first]} == {VocabKl, VocabTopkKl, VocabCrossEntropy}
    of_the_recipes = "L128 R48 d16 x3"
    assert of_the_recipes in next(case.shape for case in GPU.checked if isinstance(case, RelationKl))
    assert of_the_recipes in next(case.shape for case in GPU.timed if isinstance(case, RelationKl))
    assert of_the_recipes in GPU.tuned[0].shape
    assert sum(isinstance(case, RelationKl | ScoreMse) for case in GPU.checked) <= 16


def test_a_copy_without_git_asks_for_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for known, times in ((facts.NO_COMMIT, 1), ("abc", 0)):
        monkeypatch.setattr(facts, "commit", lambda known=known: known)
        Report(tmp_path, minutes=0.0).finish()
        assert (tmp_path / "gpu_check.txt").read_text().count("set KD_COMMIT") == times
