import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_encoder import make_model

from kd_megatron.cli import finetune as command
from kd_megatron.cli.main import main
from kd_megatron.errors import DataError, NonFiniteError, OutputError
from kd_megatron.files import locks
from kd_megatron.finetune.cell.train import CellResult
from kd_megatron.finetune.grid import grid, jobs
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.recipe import FinetuneRecipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(review_files: tuple[Path, Path]) -> dict[str, Any]:
    train, dev = map(str, review_files)
    return {
        "kind": "finetune",
        "tasks": [{"name": "reviews", "train": train, "dev": dev}],
        "grid": {"learning_rates": [1e-3, 3e-3], "batch_sizes": [8]},
        "seeds": [0, 1],
        "epochs": 3,
        "max_length": 16,
        "precision": "fp32",
    }


def recipe_of(raw: dict[str, Any], **changes: object) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate({**raw, **changes})


def scores_of(output: Path) -> dict[str, dict[str, Any]]:
    """What the cells of ``output`` found, without how long it took."""
    cells = {path.name: json.loads(path.read_text()) for path in output.glob("*/cells/*.json")}
    return {name: {k: v for k, v in cell.items() if "second" not in k} for name, cell in cells.items()}


def files_of(output: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.glob("*/cells/*.json")}


def test_a_grid_from_start_to_summary(tiny_model: Path, raw: dict[str, Any], tmp_path: Path):
    summary = run_grid(tiny_model, recipe_of(raw), tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    task = summary["tasks"]["reviews"]
    assert (task["num_train"], task["num_dev"], task["metric"]) == (96, 40, "accuracy")
    assert len(task["cells"]) == 4
    best = [cell for cell in task["cells"] if cell["learning_rate"] == task["best_cell"]["learning_rate"]]
    assert task["scores"] == {str(cell["seed"]): cell["score"] for cell in best}
    assert task["mean"] == summary["average"] == sum(cell["score"] for cell in best) / 2
    assert (summary["selection"], summary["precision"]) == (
        "best of 2 settings, selected on the dev rows it is read from",
        "fp32",
    )

    before = files_of(tmp_path / "out")
    assert all(path.with_suffix(".npz").is_file() for path in tmp_path.glob("out/reviews/cells/*.json"))
    assert len(list(tmp_path.glob("out/tensorboard/reviews/*/events*"))) == 4
    assert run_grid(tiny_model, recipe_of(raw), tmp_path / "out") == summary
    assert files_of(tmp_path / "out") == before


def test_a_changed_recipe_or_data_reuses_only_what_still_holds(
    tiny_model: Path, raw: dict[str, Any], review_files: tuple[Path, Path], tmp_path: Path
):
    output = tmp_path / "out"
    run_grid(tiny_model, recipe_of(raw, seeds=[0]), output)
    first = files_of(output)
    run_grid(tiny_model, recipe_of(raw), output)
    both_seeds = files_of(output)
    assert len(both_seeds) == 4
    assert first.items() <= both_seeds.items()
    for change in ({"epochs": 2}, {"weight_decay": 0.1}, {"max_length": 8}, {"precision": "bf16"}):
        before = files_of(output)
        run_grid(tiny_model, recipe_of(raw, seeds=[0], **change), output)
        assert len(files_of(output)) == len(before) + 2
        assert before.items() <= files_of(output).items()
    review_files[1].write_text(review_files[1].read_text() + "the film\tgood\n")
    before = files_of(output)
    run_grid(tiny_model, recipe_of(raw), output)
    assert len(files_of(output)) == len(before) + 4


def test_another_models_scores_are_never_mixed_in(tiny_model: Path, raw: dict[str, Any], tmp_path: Path):
    output = tmp_path / "out"
    run_grid(tiny_model, recipe_of(raw, seeds=[0]), output)
    before = files_of(output)
    other = make_model(tmp_path / "other", seed=5)
    with pytest.raises(OutputError, match="holds the scores of another model"):
        run_grid(other, recipe_of(raw), output)
    assert files_of(output) == before
    with pytest.raises(OutputError, match=r"holds something else: config\.json"):
        run_grid(tiny_model, recipe_of(raw), other)


def test_a_torn_cell_file_is_done_again(tiny_model: Path, raw: dict[str, Any], tmp_path: Path):
    output = tmp_path / "out"
    summary = run_grid(tiny_model, recipe_of(raw, seeds=[0]), output)
    torn = next(output.glob("reviews/cells/*.json"))
    torn.write_text(torn.read_text()[:40])
    assert run_grid(tiny_model, recipe_of(raw, seeds=[0]), output) == summary


def test_a_diverging_cell_ends_the_stage_after_the_others(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    real = grid.run_cell

    def one_diverges(*args: Any) -> CellResult:
        if (args[2].learning_rate, args[2].seed) == (1e-3, 0):
            raise NonFiniteError(given=f"{args[2]}: the loss is not finite")
        return real(*args)

    monkeypatch.setattr(grid, "run_cell", one_diverges)
    with pytest.raises(NonFiniteError, match=r"reviews lr 0\.001 batch 8 seed 0: the loss is not finite"):
        run_grid(tiny_model, recipe_of(raw), tmp_path / "out")
    assert "reviews lr 0.001 batch 8 seed 0: diverged; the other cells go on" in capsys.readouterr().err
    before = files_of(tmp_path / "out")
    assert len(before) == 3
    assert not (tmp_path / "out" / "summary.json").exists()
    without = recipe_of(raw, grid={"learning_rates": [3e-3], "batch_sizes": [8]})
    assert len(run_grid(tiny_model, without, tmp_path / "out")["tasks"]["reviews"]["cells"]) == 2
    assert files_of(tmp_path / "out") == before


def test_a_full_disk_is_one_clear_message(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs.records, "write_json", full)
    with pytest.raises(OutputError, match="no space left"):
        run_grid(tiny_model, recipe_of(raw), tmp_path / "out")


def test_data_that_cannot_be_used_is_found_before_any_training(tiny_model: Path, raw: dict[str, Any], tmp_path: Path):
    raw["tasks"].append({"name": "late", "train": str(tmp_path / "absent.tsv"), "dev": "x.tsv"})
    with pytest.raises(DataError, match=r"absent\.tsv does not exist"):
        run_grid(tiny_model, recipe_of(raw), tmp_path / "out")
    assert files_of(tmp_path / "out") == {}


def test_untrained_parameters_are_warned_of(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    card = {"untrained_parameters": ["bert.encoder.layer.1.output.dense.weight"]}
    (model / "kd_megatron.json").write_text(json.dumps(card))
    run_grid(model, recipe_of(raw, seeds=[0]), tmp_path / "out")
    assert capsys.readouterr().err.count("were never trained, such as bert.encoder.layer.1") == 1


def start(raw: dict[str, Any], model: Path, output: Path, rank: int = 0, world_size: int = 1, port: int = 0) -> Any:
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        environment |= {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
    arguments = [sys.executable, "-m", "kd_megatron", "finetune", recipe, "--model", model, "--output", output]
    return subprocess.Popen(map(str, arguments), env=environment, text=True, stdout=-1, stderr=-1)


def test_killed_then_run_again_redoes_nothing_and_ends_the_same(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    raw["seeds"] = list(range(4))
    process = start(raw, tiny_model, killed)
    while process.poll() is None and len(files_of(killed)) < 2:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = files_of(killed)
    assert 2 <= len(before) < 8
    resumed = run_grid(tiny_model, recipe_of(raw), killed)
    assert f"{len(before)} of 8 cells are done already" in capsys.readouterr().err
    assert before.items() <= files_of(killed).items()
    assert resumed == run_grid(tiny_model, recipe_of(raw), whole)
    assert scores_of(killed) == scores_of(whole)


def run_ranks(raw: dict[str, Any], model: Path, output: Path, port: int) -> list[tuple[int, str, str]]:
    processes = [start(raw, model, output, rank, 2, port) for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def test_two_processes_give_the_summary_of_one(tiny_model: Path, raw: dict[str, Any], tmp_path: Path, free_port: int):
    alone = run_grid(tiny_model, recipe_of(raw), tmp_path / "one")
    results = run_ranks(raw, tiny_model, tmp_path / "two", free_port)
    assert [code for code, _, _ in results] == [0, 0], results
    assert results[1][1] == "", "rank 1 is silent"
    assert json.loads((tmp_path / "two" / "summary.json").read_text()) == alone
    assert scores_of(tmp_path / "one") == scores_of(tmp_path / "two")


def test_the_command_prints_the_table(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    raw["tasks"][0]["max_train_examples"] = 80
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    arguments = ["finetune", str(tmp_path / "r.yaml"), "--model", str(tiny_model), "--output", str(tmp_path / "out")]
    assert main([*arguments, "epochs=1"]) == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "* reviews: train: fixed random subset of 80 of 96" in words
    assert f"written to {tmp_path / 'out' / 'summary.json'}" in printed
    mean = json.loads((tmp_path / "out" / "summary.json").read_text())["average"]
    assert printed.count(f"{mean:.4f}") >= 2


def test_an_error_on_one_rank_ends_both(tiny_model: Path, raw: dict[str, Any], tmp_path: Path, free_port: int):
    raw["glue_path"], raw["tasks"] = str(tmp_path), [{"name": "RTE"}]
    results = run_ranks(raw, tiny_model, tmp_path / "out", free_port)
    assert [code for code, _, _ in results] == [DataError.exit_code] * 2, results
    assert "RTE does not exist" in results[0][2] + results[1][2]  # one of a node's ranks says it


def test_errors_travel_between_ranks():
    error = OutputError(given="a", expected="b", fix="c")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.given, copy.expected, copy.fix) == (OutputError, "a", "b", "c")


def test_default_outputs():
    names = {
        "runs/mini/export": "finetune-mini",
        "studies/s/arms/minilm/seed_1/export": "finetune-minilm-seed_1",
        "models/bert": "finetune-bert",
    }
    assert {path: command.default_output(Path(path)).name for path in names} == names


def test_the_command_line_reports_a_missing_model(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    code = main(["finetune", str(tmp_path / "r.yaml"), "--model", str(tmp_path / "none"), "epochs=1"])
    assert code == 4
    assert "is not a model directory" in capsys.readouterr().err


def test_two_commands_at_once_into_one_output_are_refused(tiny_model: Path, raw: dict[str, Any], tmp_path: Path):
    (tmp_path / "out").mkdir()
    refused = pytest.raises(OutputError, match="another process is fine-tuning into")
    with locks.exclusive(tmp_path / "out", wait=False), refused:
        run_grid(tiny_model, recipe_of(raw, seeds=[0]), tmp_path / "out")
    run_grid(tiny_model, recipe_of(raw, seeds=[0]), tmp_path / "out")
