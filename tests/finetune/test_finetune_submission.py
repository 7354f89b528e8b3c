import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_megatron.errors import DataError, OutputError, RecipeError
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.grid.outputs import predictions_path, read_predictions, write_predictions
from kd_megatron.finetune.grid.submission import FILES, check_recipe, check_submission, write_submission
from kd_megatron.finetune.places import Cell, cell_path
from kd_megatron.finetune.tasks.glue import GLUE
from kd_megatron.recipe import FinetuneRecipe

SETTING = {"learning_rate": 3e-5, "batch_size": 32}


def recipe_of(*names: str, **fields: Any) -> FinetuneRecipe:
    return FinetuneRecipe(tasks=[{"name": name} for name in names], **fields)


def finished(output: Path, name: str, outputs: list[dict[str, np.ndarray]], chosen_by: list[float]) -> dict[str, Any]:
    """The summary's part of a task with one seed per entry, whose outputs are written as fine-tuning writes them."""
    cells = []
    for seed, (arrays, score) in enumerate(zip(outputs, chosen_by, strict=True)):
        cells.append({**SETTING, "seed": seed, "key": f"key{seed}", "score": 0.5, "selection_score": score})
        path = cell_path(output, Cell(name, 3e-5, 32, seed), f"key{seed}")
        write_predictions(predictions_path(path), arrays)
    return {"best_cell": SETTING, "cells": cells, "scores": {str(cell["seed"]): 0.5 for cell in cells}}


def logits(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[classes]


@pytest.fixture
def four_tasks(tmp_path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A summary of WNLI (two seeds), RTE, STS-B and MNLI with their outputs, and what must be predicted."""
    generator = np.random.default_rng(0)
    sizes = {file: GLUE[task].num_test[split] for file, (task, split) in FILES.items()}
    wanted = {name: generator.integers(2, size=sizes[name]) for name in ("WNLI.tsv", "RTE.tsv")}
    wanted |= {name: generator.integers(3, size=sizes[name]) for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")}
    values = np.linspace(-1, 6, sizes["STS-B.tsv"], dtype=np.float32)
    mnli = {FILES[name][1]: logits(wanted[name], 3) for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")}
    other_seed = {"test": logits(1 - wanted["WNLI.tsv"], 2)}
    tasks = {
        "WNLI": finished(tmp_path, "WNLI", [other_seed, {"test": logits(wanted["WNLI.tsv"], 2)}], [0.4, 0.6]),
        "RTE": finished(tmp_path, "RTE", [{"test": logits(wanted["RTE.tsv"], 2)}], [0.5]),
        "STS-B": finished(tmp_path, "STS-B", [{"test": values}], [0.5]),
        "MNLI": finished(tmp_path, "MNLI", [mnli], [0.5]),
    }
    return {"tasks": tasks}, {**wanted, "STS-B.tsv": values}


def test_every_file_is_as_the_server_wants_it(
    tmp_path: Path, four_tasks: tuple[dict[str, Any], dict[str, np.ndarray]], capsys: pytest.CaptureFixture[str]
):
    summary, wanted = four_tasks
    path = tmp_path / "there" / "submission.zip"
    absent = write_submission(summary, tmp_path, recipe_of("WNLI", "RTE", "STS-B", "MNLI"), path)
    assert absent == ["CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "QNLI.tsv"]
    assert sorted(check_submission(path)) == sorted(wanted)
    names = {"WNLI.tsv": ["0", "1"], "RTE.tsv": ["entailment", "not_entailment"]}
    three = ["entailment", "neutral", "contradiction"]
    names |= {"MNLI-m.tsv": three, "MNLI-mm.tsv": three, "AX.tsv": three}
    with zipfile.ZipFile(path) as archive:
        for file, predictions in wanted.items():
            lines = archive.read(file).decode().split("\n")
            assert lines[0] == "index\tprediction"
            assert lines[-1] == ""
            if file != "STS-B.tsv":
                assert lines[1:-1] == [f"{index}\t{names[file][label]}" for index, label in enumerate(predictions)]
        similarities = [line.split("\t")[1] for line in archive.read("STS-B.tsv").decode().split("\n")[1:-1]]
    assert (similarities[0], similarities[-1]) == ("0.000", "5.000"), "clipped to what STS-B knows"
    assert "WNLI lr 3e-05 batch 32 seed 1, the best of 2 seeds by selection score" in capsys.readouterr().err
    assert [file.name for file in path.parent.iterdir()] == ["submission.zip"], "nothing is left aside"


def test_from_files_to_the_zip(tmp_path: Path, tiny_model: Path):
    """A whole run: GLUE's layout in, the cells' outputs, the zip; its lines are the best seed's own outputs."""
    for split, size in (("train", 32), ("dev", 16), ("test", 146)):
        rows = [f"{index}\tthe film\t{('great', 'dull')[index % 2]}" for index in range(size)]
        labels = ["", ""] if split == "test" else ["\t0", "\t1"]
        header = "index\tsentence1\tsentence2" + ("" if split == "test" else "\tlabel")
        path = tmp_path / "glue" / "WNLI" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *(row + labels[index % 2] for index, row in enumerate(rows))]) + "\n")
    fast = {"grid": {"learning_rates": [2e-3], "batch_sizes": [8]}, "epochs": 12, "max_length": 16, "seeds": [0, 1]}
    recipe = recipe_of("WNLI", glue_path=str(tmp_path / "glue"), **fast)
    summary = run_grid(tiny_model, recipe, tmp_path / "out")
    write_submission(summary, tmp_path / "out", recipe, tmp_path / "glue.zip")

    best = max(summary["tasks"]["WNLI"]["cells"], key=lambda cell: cell["selection_score"])
    cell = Cell("WNLI", best["learning_rate"], best["batch_size"], best["seed"])
    outputs = read_predictions(predictions_path(cell_path(tmp_path / "out", cell, best["key"])))
    assert outputs["test"].shape == (146, 2)
    with zipfile.ZipFile(tmp_path / "glue.zip") as archive:
        lines = archive.read("WNLI.tsv").decode().split("\n")[1:-1]
    assert lines == [f"{index}\t{label}" for index, label in enumerate(outputs["test"].argmax(1))]
    assert lines[:2] == ["0\t0", "1\t1"], "the word that decides was learned"


def test_the_same_predictions_give_the_same_bytes(
    tmp_path: Path, four_tasks: tuple[dict[str, Any], dict[str, np.ndarray]]
):
    paths = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for path in paths:
        write_submission(four_tasks[0], tmp_path, recipe_of("WNLI", "RTE", "STS-B", "MNLI"), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tasks_without_all_test_rows_are_refused_by_name(tmp_path: Path):
    path = tmp_path / "submission.zip"
    no_test = {"tasks": {"RTE": finished(tmp_path, "RTE", [{"dev": logits(np.zeros(3, int), 2)}], [0.5])}}
    with pytest.raises(DataError, match="task RTE has no rows of test"):
        write_submission(no_test, tmp_path, recipe_of("RTE"), path)
    too_few = {"tasks": {"RTE": finished(tmp_path, "RTE", [{"test": logits(np.zeros(3, int), 2)}], [0.5])}}
    with pytest.raises(DataError, match=r"task RTE: 3 rows of test\n.*GLUE's 3000"):
        write_submission(too_few, tmp_path, recipe_of("RTE"), path)
    predictions_path(cell_path(tmp_path, Cell("RTE", 3e-5, 32, 0), "key0")).unlink()
    with pytest.raises(OutputError, match=r"npz does not exist\n.*\n.*save_predictions"):
        write_submission(too_few, tmp_path, recipe_of("RTE"), path)
    assert not path.exists()


def test_a_recipe_that_can_give_no_submission_is_refused_before_the_work(tmp_path: Path):
    own = FinetuneRecipe(tasks=[{"name": "reviews", "train": "a.tsv", "dev": "b.tsv"}, {"name": "RTE"}])
    with pytest.raises(RecipeError, match="own data: reviews"):
        check_recipe(own)
    with pytest.raises(RecipeError, match="save_predictions: false"):
        check_recipe(recipe_of("RTE", save_predictions=False))
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "test_matched.tsv").touch()
    with pytest.raises(DataError, match=r"task MNLI has no rows of test_mismatched: none in .*MNLI"):
        check_recipe(recipe_of("MNLI", glue_path=str(tmp_path)))
    for split, num_rows in (("test_matched", 9796), ("test_mismatched", 500)):
        rows = [f"{index}\ta text\tanother" for index in range(num_rows)]
        (tmp_path / "MNLI" / f"{split}.tsv").write_text("\n".join(["index\tsentence1\tsentence2", *rows]) + "\n")
    with pytest.raises(DataError, match=r"task MNLI: 500 rows of test_mismatched\n.*GLUE's 9847"):
        check_recipe(recipe_of("MNLI", glue_path=str(tmp_path)))
    check_recipe(recipe_of("MNLI"))
    check_recipe(recipe_of("mnli", glue_path=str(tmp_path)))  # no task of GLUE: refused with a better word, by its data


def lines_of_wnli() -> list[str]:
    return ["index\tprediction", *(f"{index}\t{index % 2}" for index in range(146))]


BAD = {
    "another header": (lambda lines: ["id\tlabel", *lines[1:]], r"WNLI\.tsv:1 has 'id\\tlabel'"),
    "a row too few": (lambda lines: lines[:-1], r"WNLI\.tsv has 145 predictions\n.*146"),
    "an index twice": (lambda lines: [*lines[:3], "1\t0", *lines[4:]], r"WNLI\.tsv:4 has the index '1'\n.*expected: 2"),
    "another spelling": (lambda lines: [*lines[:-1], "145\tentailment"], r"WNLI\.tsv:147 has the prediction 'entail"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_checker_finds_what_the_server_would_not_take(tmp_path: Path, case: str):
    change: Callable[[list[str]], list[str]]
    change, message = BAD[case]
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("WNLI.tsv", "\n".join(change(lines_of_wnli())) + "\n")
    with pytest.raises(DataError, match=message):
        check_submission(path)


def test_the_checker_takes_a_good_file_and_no_other_names(tmp_path: Path):
    path = tmp_path / "submission.zip"
    for name, message in (("WNLI.tsv", ""), ("glue/WNLI.tsv", "has the files glue/WNLI.tsv"), ("wnli.tsv", "wnli")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "\n".join(lines_of_wnli()) + "\n")
        if message:
            with pytest.raises(DataError, match=message):
                check_submission(path)
        else:
            assert check_submission(path) == [name]
    path.write_text("not a zip")
    with pytest.raises(DataError, match="expected: a zip"):
        check_submission(path)


@pytest.mark.parametrize("prediction", ["5.001", "-0.1", "nan", "high"])
def test_a_similarity_outside_its_range_is_found(tmp_path: Path, prediction: str):
    lines = ["index\tprediction", *(f"{index}\t2.5" for index in range(1378)), f"1378\t{prediction}"]
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("STS-B.tsv", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"STS-B\.tsv:1380 has the prediction .*\n.*a number from 0 to 5"):
        check_submission(tmp_path / "s.zip")
