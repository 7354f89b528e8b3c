"""What is saved of an engine is all of it: restored bit for bit at its own ZeRO stage, and read by every other one."""

import json
from pathlib import Path
from typing import Any

import engine_states
import processes
import pytest
from engine_states import CONFIGS, PRECISIONS, STEPS
from tolerances import PARITY_BF16_RELATIVE, PARITY_FLOAT32_RELATIVE

from kd_megatron.ranks import dist

Results = dict[str, dict[str, Any]]
TOLERANCE = {"fp32": PARITY_FLOAT32_RELATIVE, "bf16": PARITY_BF16_RELATIVE}


def results_of(directory: Path, world_size: int, cases: str) -> Results:
    processes.run([engine_states.__file__, str(directory), cases], world_size)
    found: Results = json.loads((directory / f"results_{world_size}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine_states")


@pytest.fixture(scope="module")
def results(directory: Path) -> Results:
    """One process, in this one, then two, each of which also reads what one of the first wrote."""
    dist.initialise()
    return engine_states.check(directory, every_pair=False) | results_of(directory, 2, "some")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS)
def test_it_goes_on_bit_for_bit_where_it_was_written(
    results: Results, config: str, precision: str, world_size: int
) -> None:
    result = results[f"{config}-{precision}-{world_size}"]
    assert result["updates"] == STEPS
    assert result["restored"]
    assert result["continued"]


def test_another_stage_and_number_of_processes_reads_the_same_numbers(results: Results) -> None:
    crossings = [name for name in results if ">" in name]
    assert len(crossings) == len(CONFIGS) * len(PRECISIONS)
    assert_crossings(results, crossings)


def assert_crossings(results: Results, crossings: list[str]) -> None:
    for name in crossings:
        tolerance = TOLERANCE["bf16" if "bf16" in name else "fp32"]
        assert results[name]["restored"], name
        assert results[name]["curve"] == pytest.approx(results[name]["expected"], rel=tolerance), name


def test_the_curve_moves(results: Results) -> None:
    """The comparison above would also hold if nothing were trained."""
    losses = results["zero0-fp32-1"]["curve"][::2]
    assert max(losses) > 1.05 * min(losses)


def test_what_rank_0_cannot_write_is_an_error_on_every_rank(results: Results) -> None:
    assert results["refused"] == [True, True]


@pytest.mark.long
def test_every_pair_of_stages_among_1_2_and_4_processes(tmp_path: Path) -> None:
    found = [results_of(tmp_path, world_size, "all") for world_size in (1, 2, 4)]
    found.append(results_of(tmp_path, 1, "all"))
    crossings = [name for results in found for name in results if ">" in name]
    assert len(set(crossings)) >= 2 * 6 * 6 * (1 + 2 + 2)  # 1 > 2, {1, 2} > 4, {2, 4} > 1, and 1 > 1
    for results in found:
        assert_crossings(results, [name for name in results if ">" in name])
