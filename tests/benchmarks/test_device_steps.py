"""Whole steps of `benchmarks/gpu_check.sh`, dry: every lever of every arm runs, is compared, and has its row."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.data import made_up
from benchmarks.gpu import device_place, device_steps
from benchmarks.gpu.device_step_sizes import (
    ALLOWED_FP8,
    CACHED,
    COMPILED,
    DRY_RUN,
    FLOP_BOUNDS,
    FP8,
    GPU,
    LEVERS,
    OURS,
    TARGETS,
    WHOLE,
    StepSetting,
    StepSizes,
    recipe,
    variant,
)
from benchmarks.gpu.report import Report
from benchmarks.steps import made_up_inputs
from benchmarks.steps.variants import TimedVariant
from kd_megatron.cli.main import main
from kd_megatron.engine.flops import arm_cost

ARMS = ("scratch", "vanilla_kd", "minilm", "tinybert")


def quick(*levers: str) -> StepSizes:
    return replace(DRY_RUN, places=(replace(DRY_RUN.places[0], levers=levers),), num_checked_steps=2)


def run(sizes: StepSizes, directory: Path, minutes: float = 5.0) -> tuple[int, dict]:
    report = Report(directory, minutes)
    device_steps.run(sizes, report)
    return report.finish(), json.loads((directory / "gpu_check.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def small_inputs() -> Iterator[None]:
    """A few words and windows: what is held here asks nothing of them, and they were most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "write_made_up", partial(made_up.write_made_up, vocab_size=2000))
        patch.setattr(made_up_inputs, "MADE_UP_TOKENS", 20_000)
        yield


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict, Path]:
    directory = tmp_path_factory.mktemp("out")
    return (*run(DRY_RUN, directory), directory)


def test_every_lever_of_every_arm_is_compared_and_timed(dry_run: tuple[int, dict, Path]):
    exit_code, record, _ = dry_run
    assert (exit_code, record["red"], record["skipped"]) == (0, [], [])
    expected = {(f"steps/{arm}", lever) for arm in ARMS for lever in LEVERS}
    expected -= {("steps/scratch", lever) for lever in (FP8, CACHED)}  # it has no teacher
    assert {(row["name"], row["backend"]) for row in record["rows"]} == expected
    assert {(check["name"], check["backend"]) for check in record["checks"]} == expected
    assert all(check["passed"] for check in record["checks"])
    (shape,) = {row["shape"] for row in record["rows"]}
    assert shape == "B4 L16 2x32 from 4x32"
    assert {row["ratio_to"] for row in record["rows"]} == {f"steps/scratch {COMPILED}"}


def test_fp8_and_compiled_steps_are_what_they_say(dry_run: tuple[int, dict, Path]):
    """Of the same losses to the last digit something would not have happened."""
    _, record, _ = dry_run
    errors = {(check["name"], check["backend"], check["tensor"]): check["error"] for check in record["checks"]}
    assert all(errors[f"steps/{arm}", FP8, term] > 1e-6 for arm, term in (("minilm", "keys"), ("tinybert", "hidden")))
    assert errors["steps/minilm", WHOLE, "keys"] == 0.0
    assert max(error for (_, lever, _), error in errors.items() if lever != FP8) < 1e-2
    assert max(errors.values()) < ALLOWED_FP8


def test_targets_stand_beside_the_figures(dry_run: tuple[int, dict, Path]):
    _, record, directory = dry_run
    assert Counter(line.split(", ")[1].partition(":")[0] for line in record["targets"]) == {
        COMPILED: 3,
        FP8: 3,
        CACHED: 3,
    }
    text = (directory / "gpu_check.txt").read_text()
    assert all(line in text for line in record["targets"])


def test_profiles_and_traces_of_two_arms_are_left(dry_run: tuple[int, dict, Path]):
    _, record, directory = dry_run
    assert {row["arm"] for row in record["profile"]} == {"scratch", "minilm"}
    assert all(row["ms_per_step"] >= 0.0 for row in record["profile"])
    assert len(record["profile"]) <= 2 * 30
    traces = sorted(path.name for path in directory.glob("trace_*.json.gz"))
    assert traces == ["trace_minilm_ours_compile.json.gz", "trace_scratch_ours_compile.json.gz"]


def test_targets_lie_below_the_bound_of_floating_point_operations():
    """A bound is the ratio of the products that scratch and the arm compute, by the counts that budgets are charged."""
    study = recipe(GPU.places[0], GPU.precision)
    costs = {arm: arm_cost(study, arm, 30_522) for arm in ARMS}
    for arm, bound in FLOP_BOUNDS.items():
        products = costs[arm].student_flops_per_token + costs[arm].teacher_flops_per_token
        ratio = costs["scratch"].student_flops_per_token / products
        assert bound == pytest.approx(ratio, abs=0.01), arm
    assert all(target.least < target.bound for target in TARGETS if target.bound)


def test_a_float8_teacher_that_differs_is_reported_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    true = TimedVariant.losses_of_a_step

    def planted(run: TimedVariant) -> dict[str, float]:
        factor = {"minilm": 1.2, "tinybert": math.nan}.get(run.variant.arm, 1.0) if run.variant.backend == FP8 else 1.0
        return {term: factor * value for term, value in true(run).items()}

    monkeypatch.setattr(TimedVariant, "losses_of_a_step", planted)
    exit_code, record = run(quick(WHOLE, FP8), tmp_path)
    assert exit_code == 1
    assert {line.partition(",")[0] for line in record["red"]} == {"tinybert"}, "what is not a number stays red"
    assert {line.partition(",")[0] for line in record["float8_differences"]} == {"minilm"}
    timed = {row["name"] for row in record["rows"] if row["backend"] == FP8}
    assert "steps/minilm" in timed
    assert "steps/tinybert" not in timed


def test_bench_show_prints_the_rows(dry_run: tuple[int, dict, Path], capfd: pytest.CaptureFixture[str]):
    *_, directory = dry_run
    assert main(["bench", "show", str(directory / "gpu_check.json")]) == 0
    shown = capfd.readouterr().out
    assert "steps/minilm" in shown
    assert FP8 in shown


def test_a_lever_that_differs_is_red_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    true = TimedVariant.losses_of_a_step

    def planted(run: TimedVariant) -> dict[str, float]:
        factor = 1.2 if (run.variant.arm, run.variant.backend) == ("minilm", OURS) else 1.0
        return {term: factor * value for term, value in true(run).items()}

    monkeypatch.setattr(TimedVariant, "losses_of_a_step", planted)
    exit_code, record = run(quick(WHOLE, OURS), tmp_path)
    assert exit_code == 1
    assert {line.partition(": ")[0] for line in record["red"]} == {f"minilm, {OURS}, 2x32 from 4x32 L16"}
    rows = {(row["name"], row["backend"]) for row in record["rows"]}
    assert rows == {(f"steps/{arm}", lever) for arm in ARMS for lever in (WHOLE, OURS)} - {("steps/minilm", OURS)}


def test_faults_and_full_memory_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """minilm fails; tinybert fits into memory in two micro-batches, vanilla_kd in none."""
    true, sizes = device_place.TimedVariant, []

    def planted(asked, directory: Path, teacher: str | None) -> TimedVariant:
        size = asked.study.training.micro_batch_size
        if asked.arm == "minilm":
            raise RuntimeError("an illegal instruction\nmore")
        if asked.arm == "vanilla_kd" or (asked.arm, size) == ("tinybert", 4):
            sizes.append((asked.arm, size))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return true(asked, directory, teacher)

    monkeypatch.setattr(device_place, "TimedVariant", planted)
    exit_code, record = run(quick(OURS), tmp_path)
    place = "2x32 from 4x32 L16"
    assert exit_code == 1
    assert record["red"] == [f"minilm, {OURS}, {place}: RuntimeError: an illegal instruction"]
    assert record["out_of_memory"] == [f"vanilla_kd, {OURS}, {place}"]
    assert sizes == [("vanilla_kd", 4), ("vanilla_kd", 2), ("vanilla_kd", 1), ("tinybert", 4)]
    shapes = {row["name"]: row["shape"] for row in record["rows"]}
    assert shapes == {"steps/scratch": "B4 L16 2x32 from 4x32", "steps/tinybert": "B4 L16 (2x2) 2x32 from 4x32"}
    assert "Traceback" in (tmp_path / "gpu_check.txt").read_text()


def test_what_the_time_does_not_allow_is_skipped_and_said_to_be(tmp_path: Path):
    exit_code, record = run(quick(OURS), tmp_path, minutes=0.0)
    assert (exit_code, record["rows"]) == (0, [])
    assert record["skipped"] == ["levers at 2x32 from 4x32 L16", "timing at 2x32 from 4x32 L16"]


@pytest.mark.parametrize("place", GPU.places, ids=str)
def test_the_recipes_for_a_gpu_are_sound(place: StepSetting, tmp_path: Path):
    study = recipe(place, GPU.precision)
    assert set(study.arms) == set(ARMS)
    for lever in place.levers:
        for arm in ("minilm", "tinybert"):
            asked = variant(study, arm, lever, tmp_path, place.batch_size)
            assert asked.study.training.compile == LEVERS[lever].compiled
    assert study.data.unique_tokens == 2 * place.batch_size * place.length  # the cache is warm after two steps
    assert place.student["num_attention_heads"] == place.teacher["num_attention_heads"]  # tinybert compares heads
    widths = place.student["hidden_size"], place.teacher["hidden_size"]
    assert all(width % place.num_relation_heads == 0 for width in widths)


def test_the_dry_run_covers_what_a_gpu_does():
    assert set(DRY_RUN.places[0].levers) >= {lever for place in GPU.places for lever in place.levers}
    sizes = {(place.name, place.length) for place in GPU.places}
    assert sizes == {("6x768 from 12x768", 128), ("6x768 from 12x768", 512), ("12x1024 from 24x1024", 128)}
