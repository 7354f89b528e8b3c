"""A study watched while it runs: where each run is, the report as pieces are finished, and nothing of it touched."""

import fcntl
import io
import json
import os
import shutil
import threading

import pytest
import study_on_disk
from rich.console import Console

from kd_megatron.analysis import results
from kd_megatron.cli import main as cli
from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.recipe import recipe_yaml
from kd_megatron.report import watch
from kd_megatron.report.page import drawing
from kd_megatron.report.study.page import write_report
from kd_megatron.study.cells import GridPoint, cell_recipe

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two arms; the second is at half its budget, and its metrics end in a torn line."""
    monkeypatch.setitem(drawing.STYLE, "savefig.dpi", 60)
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1, arms=ARMS))
    run = directory / "arms" / "minilm" / "seed_0"
    shutil.move(run / "summary.json", tmp_path / "summary.json")
    shutil.rmtree(directory / "finetune" / "minilm")
    rows = (run / "metrics.jsonl").read_text().splitlines()[:4]
    (run / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 99')
    return directory


def test_where_each_run_is(study):
    scratch, minilm = watch.progress(results.load(study))
    assert (scratch.state, scratch.probe_loss, scratch.seconds_left) == ("finished", 3.90, None)
    assert minilm.state == "pretraining"
    assert minilm.row["step"] == 156 // 2
    assert minilm.seconds_left == pytest.approx(0.2 * 3600)  # half of the budget took 0.2 hours
    assert minilm.cells()[:6] == ["minilm", "0", "pretraining", "78", "639k", "50%"]
    assert minilm.silent_seconds < 600


def test_what_follows_pretraining(study):
    (finetuned,) = (study / "finetune" / "scratch").iterdir()
    (finetuned / "summary.json").unlink()
    assert next(watch.progress(results.load(study))).state == "fine-tuning"
    finetuned.rmdir()
    assert next(watch.progress(results.load(study))).state == "to fine-tune"
    shutil.rmtree(study / "arms")
    assert [one.state for one in watch.progress(results.load(study))] == ["waiting", "waiting"]


def test_the_table_is_drawn(study):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(watch.table(results.load(study)))
    text = console.export_text()
    assert "639k" in text
    assert "1 of 2 runs pretrained, 1 fine-tuned" in text


def test_it_follows_a_study_to_its_end(study, tmp_path):
    def finish():
        shutil.copy(tmp_path / "summary.json", study / "arms" / "minilm" / "seed_0")
        study_on_disk.write_finetune(study / "finetune" / "minilm" / "seed_0", "minilm", 0)

    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    timer = threading.Timer(0.5, finish)
    timer.start()
    page = watch.watch(study, every_seconds=0.1)
    timer.join()
    assert "Not finished" not in page.read_text()
    assert {path: path.read_bytes() for path in before} == before


def test_only_what_is_finished_changes_the_report(study):
    first = watch.pieces(study)
    with (study / "arms" / "minilm" / "seed_0" / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 100, "loss": 1.0}))
    assert watch.pieces(study) == first
    study_on_disk.edit_summary(study / "arms" / "scratch" / "seed_0", steps=1)
    assert watch.pieces(study) != first


def test_two_writers_wait_for_each_other(study):
    descriptor = os.open(study, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    writer = threading.Thread(target=write_report, args=[study])
    writer.start()
    writer.join(timeout=0.5)
    assert writer.is_alive()
    assert not (study / "report.partial").exists()
    os.close(descriptor)
    writer.join()
    assert (study / "report" / "index.html").is_file()


def test_a_grid_is_watched_cell_by_cell(study):
    recipe = study_on_disk.study_recipe(num_seeds=1, arms=ARMS, grid={"unique_tokens": [512, None]})
    grid = study.parent / "grid"
    cell = shutil.copytree(study, grid / "cells" / "budget_1_unique_512")
    for directory, one in ((grid, recipe), (cell, cell_recipe(recipe, GridPoint(1.0, 512)))):
        (directory / "study.yaml").write_text(recipe_yaml.dump(one.model_dump(mode="json")))
    studies, missing = watch.load(grid, "t")
    assert [one.state for one in watch.progress(studies[0])] == ["finished", "pretraining"]
    assert missing == ["1 pieces of cell budget_1_unique_512", "cell budget_1_unique_all"]
    assert any(name.startswith("cells/") for name in watch.pieces(grid))


def test_what_cannot_be_watched(study, tmp_path):
    assert cli.main(["report", str(study), "--watch", "--to", str(tmp_path / "to")]) == RecipeError.exit_code
    with pytest.raises(OutputError, match="is not a study"):
        watch.watch(tmp_path)
