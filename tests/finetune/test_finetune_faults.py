"""The stage when something goes wrong: a killed process, a full disk, a cell that diverges, input that cannot be used.

Every time: one clear message, its exit code, and the cells that were finished before are as they were.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_encoder import make_model, sentences, write_tsv

from kd_megatron.cli.main import main
from kd_megatron.errors import OutputError
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.grid.outputs import predictions_path, read_predictions
from kd_megatron.recipe import FinetuneRecipe

ROOT = Path(__file__).parents[2]
DIVERGING = 1e30  # a learning rate


@pytest.fixture
def raw(review_files: tuple[Path, Path]) -> dict[str, Any]:
    train, dev = map(str, review_files)
    return {
        "kind": "finetune",
        "tasks": [{"name": "reviews", "train": train, "dev": dev}],
        "grid": {"learning_rates": [1e-3], "batch_sizes": [8]},
        "seeds": [0, 1],
        "epochs": 2,
        "max_length": 16,
        "precision": "fp32",
    }


def files_of(output: Path) -> dict[str, tuple[int, bytes]]:
    """The finished cells of ``output`` and their predictions."""
    cells = list(output.glob("*/cells/*.json"))
    found = [*cells, *(predictions_path(cell) for cell in cells)]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found if path.exists()}


def call(raw: dict[str, Any], model: Path, output: Path, *overrides: str) -> int:
    """The command, in this process."""
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    return main(["finetune", str(recipe), *overrides, "--model", str(model), "--output", str(output)])


def start_ranks(
    raw: dict[str, Any], model: Path, output: Path, port: int, lost_seconds: int = 5
) -> list[subprocess.Popen[str]]:
    """The command on two processes."""
    recipe = output.parent / f"{output.name}.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "KD_LOST_SECONDS": str(lost_seconds)}
    environment["KD_FINETUNE_SAVE_SECONDS"] = "1"
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "kd_megatron", "finetune", str(recipe)]
    command += ["--model", str(model), "--output", str(output)]
    return [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


@pytest.mark.long
def test_one_of_two_processes_is_killed_and_the_same_command_goes_on(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, free_port: int
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    raw |= {"seeds": list(range(12)), "epochs": 6}
    ranks = start_ranks(raw, tiny_model, killed, free_port)
    while len(files_of(killed)) < 4 and ranks[1].poll() is None:
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGKILL)
    said = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert ranks[0].returncode == 9, said
    assert "rank 1" in said[0]
    assert not (killed / "summary.json").exists()
    before = files_of(killed)
    num_before = len(before) // 2
    assert 2 <= num_before < 12

    ranks = start_ranks(raw, tiny_model, killed, free_port)
    said = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert f"{num_before} of 12 cells are done already" in said[0]
    assert before.items() <= files_of(killed).items(), "nothing is done twice"
    assert run_grid(tiny_model, FinetuneRecipe.model_validate(raw), whole) == json.loads(
        (killed / "summary.json").read_text()
    )
    for cell in whole.glob("*/cells/*.npz"):
        assert (killed / cell.relative_to(whole)).read_bytes() == cell.read_bytes()
    assert not [*killed.rglob("*.partial"), *killed.rglob("*.unfinished.*")]


@pytest.mark.long
def test_a_process_killed_within_a_long_cell_goes_on_there(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, free_port: int
):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    raw |= {"seeds": [0, 1], "epochs": 100}
    ranks = start_ranks(raw, tiny_model, killed, free_port, lost_seconds=60)
    while len(list(killed.rglob("*.unfinished.safetensors"))) < 2 and ranks[0].poll() is None:
        time.sleep(0.01)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    for rank in ranks:
        rank.communicate(timeout=60)
    assert not files_of(killed), "both cells were on their way"
    ranks = start_ranks(raw, tiny_model, killed, free_port, lost_seconds=60)
    said = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "goes on at step" in said[0], "rank 0 alone speaks"
    assert run_grid(tiny_model, FinetuneRecipe.model_validate(raw), whole) == json.loads(
        (killed / "summary.json").read_text()
    )
    for cell in whole.glob("*/cells/*.npz"):
        assert (killed / cell.relative_to(whole)).read_bytes() == cell.read_bytes()
    assert not list(killed.rglob("*.unfinished*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no byte of the disk; the file to remove afterwards."""
    filling = place / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(place).free))
    assert shutil.disk_usage(place).free == 0
    return filling


def test_a_full_disk_keeps_earlier_cells(
    tiny_model: Path, raw: dict[str, Any], small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = small_disk / "out"
    assert call(raw, tiny_model, output, "seeds=[0]") == 0
    before = files_of(output)
    # What is written first differs: predictions, curves, the cell's json.
    kept = [["save_predictions=true"], ["save_predictions=false"], ["save_predictions=false", "tensorboard=false"]]
    for number, overrides in enumerate(kept, start=1):
        filling = fill(small_disk)
        capsys.readouterr()
        recipe = tmp_path / "r.yaml"
        recipe.write_text(yaml.safe_dump(raw))
        seeds = f"seeds={list(range(number + 1))}"
        command = ["finetune", str(recipe), seeds, *overrides, "--model", str(tiny_model), "--output", str(output)]
        assert main(command) == OutputError.exit_code
        assert "no space left on the disk while writing" in capsys.readouterr().err
        assert files_of(output) == before
        filling.unlink()
        assert main(command) == 0
        assert before.items() <= files_of(output).items()
        before = files_of(output)


def test_a_diverging_cell_is_named_and_costs_no_other(
    tiny_model: Path, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out"
    both = f"grid.learning_rates=[1e-3,{DIVERGING}]"
    assert call(raw, tiny_model, output, both) == 6
    message = capsys.readouterr().err
    assert "reviews lr 1e+30 batch 8 seed 0: diverged; the other cells go on" in message
    assert "reviews lr 1e+30 batch 8 seed 0: the loss is not finite" in message
    before = files_of(output)
    assert len(before) == 4, "both seeds of the other setting, with their predictions"
    assert not (output / "summary.json").exists()
    assert call(raw, tiny_model, output) == 0
    assert files_of(output) == before
    for cell in output.glob("reviews/cells/*.json"):
        assert read_predictions(predictions_path(cell))["dev"].shape == (40, 2)


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_bad_input_is_one_message_before_any_training(
    tiny_model: Path,
    raw: dict[str, Any],
    review_files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    output = tmp_path / "out"
    assert call(raw, tiny_model, output) == 0
    before = files_of(output)
    glue = tmp_path / "glue"
    for name in ("CoLA", "RTE", "SST-2"):
        (glue / name).mkdir(parents=True)
    (glue / "CoLA" / "train.tsv").write_text("source\tlabel\tmark\tsentence\nx\t1\t\tA text.\nx\t0\t*\tText a.\n")
    (glue / "CoLA" / "dev.tsv").write_text("x\t1\t\tA text.\n")
    (glue / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    (glue / "SST-2" / "dev.tsv").write_text("sentence\tlabel\na\t1\n")
    no_tokenizer = shutil.copytree(tiny_model, tmp_path / "no_tokenizer")
    for path in no_tokenizer.glob("*token*"):
        path.unlink()
    train = review_files[0]
    three = write_tsv(tmp_path / "three.tsv", [*sentences(8, 1), ("the film", "mixed")])
    one = write_tsv(tmp_path / "one.tsv", [(text, "good") for text, _ in sentences(8, 1)])
    bare = write_tsv(tmp_path / "bare.tsv", [*sentences(8, 1), ("the film", "")])
    quoted = tmp_path / "quoted.csv"
    quoted.write_text('text,label\n"the film,good\nthe plot,bad\n')

    def own(**changes: object) -> list[str]:
        return [f"tasks={json.dumps([{**raw['tasks'][0], **{key: str(value) for key, value in changes.items()}}])}"]

    def of_glue(name: str) -> list[str]:
        return [f"tasks={json.dumps([{'name': name}])}", f"glue_path={glue}"]

    cases: list[tuple[list[str], Path, int, str]] = [
        (["seeds=[1,2,1]"], tiny_model, 2, "seeds are given twice: [1]"),
        (["epoch=3"], tiny_model, 2, "did you mean 'epochs'?"),
        (own(metric="f1_accuracy", train=three), tiny_model, 2, "'f1_accuracy' with 3 classes"),
        (["max_length=64"], tiny_model, 4, "has 32 positions"),
        ([], no_tokenizer, 4, "has no tokenizer"),
        ([], make_model(tmp_path / "other", seed=3), 5, "holds the scores of another model"),
        (of_glue("QNLI"), tiny_model, 3, "QNLI does not exist"),
        (of_glue("RTE"), tiny_model, 3, "dev.tsv does not exist"),
        (of_glue("SST-2"), tiny_model, 3, "train.tsv does not exist"),
        (of_glue("CoLA"), tiny_model, 3, "CoLA/train.tsv:1"),
        (own(label="stars"), tiny_model, 3, "has no column 'stars'"),
        (own(train=one, dev=one), tiny_model, 3, "have the label 'good'"),
        (own(train=bare), tiny_model, 3, "bare.tsv:10 has an empty"),
        (own(dev=three), tiny_model, 3, "'mixed'"),
        (own(type="regression"), tiny_model, 3, f"{train}:2 has the label 'good'"),
        (own(train=quoted), tiny_model, 3, "quoted.csv"),
    ]
    for overrides, model, code, message in cases:
        capsys.readouterr()
        found = call(raw, model, output, *overrides)
        said = capsys.readouterr().err
        assert (found, message in said) == (code, True), (overrides, said)
        assert "Traceback" not in said
    assert files_of(output) == before
