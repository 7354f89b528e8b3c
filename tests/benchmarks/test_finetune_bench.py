"""`bench finetune` from the command line, on a tiny model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_megatron import errors
from kd_megatron.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(review_files: tuple[Path, Path], tmp_path: Path) -> Path:
    train, dev = map(str, review_files)
    raw = {
        "kind": "finetune",
        "tasks": [{"name": "reviews", "train": train, "dev": dev}],
        "grid": {"learning_rates": [3e-3], "batch_sizes": [8]},
        "max_length": 16,
        "precision": "fp32",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def rows_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    record = json.loads(path.read_text())
    return record, record["rows"]


def test_runs_are_timed_scored_written_and_compared(
    tiny_model: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "rows.json"
    arguments = ["bench", "finetune", str(recipe), "--model", str(tiny_model), "--json", str(file)]
    assert main([*arguments, "--peers"]) == 0
    record, rows = rows_of(file)
    ours = rows[-1]
    assert (ours["name"], ours["backend"], ours["shape"]) == (
        "finetune/reviews",
        "ours, batch 8",
        "96 train x 5, 40 dev",
    )
    scores = record["scores"]["finetune/reviews, ours, batch 8"]
    assert len(scores) == 2, "one for each round"
    assert min(scores) > 0.9
    assert "finetune/reviews 96 train x 5, 40 dev fp32" in capsys.readouterr().out
    assert main([*arguments, "--rounds", "1", "--compare", str(file), "--tolerance", "0.99"]) == 0


def test_scores_stand_beside_those_of_the_first_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    facts = {"date": "2026-11-28", "commit": "c" * 40, "uncommitted_changes": False, "versions": {}}
    figures = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "tokens_per_second", "ratio"), 1.0)
    rows = [
        {"name": "finetune/T", "backend": name, "shape": "s", "dtype": "fp32", "device": "cpu", "peak_mib": None}
        | figures
        | {"ratio_to": "Trainer"}
        for name in ("Trainer", "ours", "grid")
    ]
    hardware = {"device": "cpu", "num_threads_per_process": 1}
    scores = {"Trainer": [0.80, 0.81, 0.79], "ours": [0.82, 0.80, 0.81], "grid": [0.8, 0.8]}
    record = {**facts, "hardware": hardware, "rows": rows}
    record["scores"] = {f"finetune/T, {name}": values for name, values in scores.items()}
    (tmp_path / "rows.json").write_text(json.dumps(record))
    assert main(["bench", "show", str(tmp_path / "rows.json"), "--markdown", str(tmp_path / "page.md")]) == 0
    page, difference = (tmp_path / "page.md").read_text(), "+1.0 [\N{MINUS SIGN}1.3, +3.3]"
    assert "| finetune/T | Trainer | 3 | 80.0 ± 2.5 |  |" in page
    assert f"| finetune/T | ours | 3 | 81.0 ± 2.5 | {difference} |" in page
    assert page.count("| grid |") == 1, "two rounds are too few for an interval: its speed alone is there"
    assert difference in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is not None, reason="here the Trainer can run")
def test_a_peer_that_cannot_run_is_left_out(
    tiny_model: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["bench", "finetune", str(recipe), "--model", str(tiny_model), "--peers", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "rows.json"), "epochs=1"]) == 0
    assert "the package accelerate is not installed" in capsys.readouterr().err
    (ours,) = rows_of(tmp_path / "rows.json")[1]
    assert (ours["ratio"], ours["ratio_to"]) == (1.0, "ours, batch 8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "without --model"),
        (["--model", "absent"], "is not a model directory"),
        (["--model", "absent", "--rounds", "0"], "--rounds 0"),
        (["--model", "absent", "--processes", "two"], "--processes two"),
        (["--model", "absent", "--peer-python", "no_such_python"], "there is no such program"),
        (["--model", "absent", "--steps", "3"], "takes no steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    recipe: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "finetune", str(recipe), *options]) in {
        errors.RecipeError.exit_code,
        errors.ModelError.exit_code,
    }
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_grid_on_one_and_two_processes_comes_to_the_same(tiny_model: Path, recipe: Path, tmp_path: Path):
    file = tmp_path / "rows.json"
    arguments = ["bench", "finetune", str(recipe), "--model", str(tiny_model), "--processes", "1,2", "--rounds", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    record, rows = rows_of(file)
    assert [(row["backend"], row["ratio_to"]) for row in rows] == [("1 process",) * 2, ("2 processes", "1 process")]
    assert len({tuple(scores) for scores in record["scores"].values()}) == 1
