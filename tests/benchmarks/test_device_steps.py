"""Whole steps of `benchmarks/gpu_check.sh`, dry: every lever of every arm runs, is compared, and has its row."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.data import made_up
from benchmarks.gpu import device_place, device_steps, profiling
from benchmarks.gpu.device_step_sizes import (
    CACHED,
    COMPILED,
    DRY_RUN,
    EXPECTED_FP8,
    FP8,
    GPU,
    LEVERS,
    OURS,
    TARGETS,
    WHOLE,
    StepSetting,
    StepSizes,
    flop_bound,
    recipe,
    variant,
)
from benchmarks.gpu.report import Report
from benchmarks.steps import made_up_inputs
from benchmarks.steps.variants import TimedVariant
from kd_megatron.cli.main import main
from kd_megatron.engine.flops import SequenceCost, arm_cost

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
    of_fp8 = {key for key in expected if key[1] == FP8}
    assert {(check["name"], check["backend"]) for check in record["checks"]} == expected - of_fp8
    assert {(check["name"], check["backend"]) for check in record["fp8_differences"]} == of_fp8
    assert all(check["passed"] for check in record["checks"])
    (shape,) = {row["shape"] for row in record["rows"]}
    assert shape == "B4 L16 2x32 from 4x32"
    assert {row["ratio_to"] for row in record["rows"]} == {f"steps/scratch {COMPILED}"}


def test_fp8_and_compiled_steps_are_what_they_say(dry_run: tuple[int, dict, Path]):
    """Of the same losses to the last digit something would not have happened."""
    _, record, _ = dry_run
    errors = {
        (check["name"], check["backend"], check["tensor"]): check["error"]
        for check in record["checks"] + record["fp8_differences"]
    }
    assert all(errors[f"steps/{arm}", FP8, term] > 1e-6 for arm, term in (("minilm", "keys"), ("tinybert", "hidden")))
    assert errors["steps/minilm", WHOLE, "keys"] == 0.0
    assert max(error for (_, lever, _), error in errors.items() if lever != FP8) < 1e-2
    assert max(errors.values()) < EXPECTED_FP8


def test_targets_stand_beside_the_figures(dry_run: tuple[int, dict, Path]):
    _, record, directory = dry_run
    assert Counter(line.split(", ")[1].partition(":")[0] for line in record["targets"]) == {
        COMPILED: 3,
        FP8: 3,
        CACHED: 3,
    }
    text = (directory / "gpu_check.txt").read_text()
    assert all(line in text for line in record["targets"])


def test_a_target_is_a_share_of_what_the_arms_flops_allow():
    """The bounds of the recipes' models at length 128, by hand count: in bf16, and an FP8 teacher 1.5 times as fast."""
    study = recipe(GPU.places[0], "bf16")
    costs = {arm: arm_cost(study, arm, 30522) for arm in ARMS}
    sequences = {
        arm: SequenceCost(cost.student_flops_per_token, 0.0, 0.0, cost.teacher_again_flops_per_token)
        for arm, cost in costs.items()
    }
    bounds = {
        lever: [round(flop_bound(sequences["scratch"], sequences[arm], lever), 2) for arm in ARMS]
        for lever in (COMPILED, FP8)
    }
    assert bounds == {COMPILED: [1.0, 0.61, 0.72, 0.65], FP8: [1.0, 0.7, 0.84, 0.75]}
    assert all(target.least < 1.0 for target in TARGETS)


def test_kernels_are_listed_and_a_trace_is_left(dry_run: tuple[int, dict, Path]):
    _, record, directory = dry_run
    names = {kernel["profile"] for kernel in record["kernels"]}
    assert names == {"scratch_2x32_from_4x32_L16", "minilm_2x32_from_4x32_L16"}
    for name in names:
        kernels = [kernel for kernel in record["kernels"] if kernel["profile"] == name]
        assert len(kernels) == profiling.NUM_KERNELS
        times = [kernel["ms_per_step"] for kernel in kernels]
        assert times == sorted(times, reverse=True)
        assert 0.5 < sum(kernel["share"] for kernel in kernels) <= 1.0 + 1e-9
        trace = json.loads(gzip.decompress((directory / f"trace_{name}.json.gz").read_bytes()))
        assert trace["traceEvents"]


def test_an_fp8_teacher_whose_losses_differ_is_said_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    true = TimedVariant.losses_of_a_step

    def planted(run: TimedVariant) -> dict[str, float]:
        factor = 1.2 if (run.variant.arm, run.variant.backend) == ("minilm", FP8) else 1.0
        return {term: factor * value for term, value in true(run).items()}

    monkeypatch.setattr(TimedVariant, "losses_of_a_step", planted)
    exit_code, record = run(quick(WHOLE, FP8), tmp_path)
    assert (exit_code, record["red"]) == (0, [])
    assert ("steps/minilm", FP8) in {(row["name"], row["backend"]) for row in record["rows"]}
    said = [entry["said"] for entry in record["fp8_differences"] if not entry["passed"]]
    assert said
    assert all(line.startswith(f"minilm, {FP8}") and "MORE THAN EXPECTED" in line for line in said)


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
