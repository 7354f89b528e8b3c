"""Own data in every format gives the same task; what cannot be read says where and why."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from kd_megatron.errors import DataError, RecipeError
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe
from kd_megatron.recipe.config import validate

TEXTS = ['a "quoted" word', "commas, here", "über naïve", " spaces kept "]
ROWS = [
    {"body": text, "other": f"pair {index}", "stars": ("bad", "good")[index % 2]} for index, text in enumerate(TEXTS)
]


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "tsv": write_tsv,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def reviews(directory: Path, suffix: str, rows: list[dict[str, Any]] = ROWS, **fields: Any) -> TaskRecipe:
    for split in ("train", "dev", "test"):
        WRITERS[suffix](directory / f"{split}.{suffix}", rows)
    paths = {split: str(directory / f"{split}.{suffix}") for split in ("train", "dev")}
    return TaskRecipe(name="reviews", **paths, **{"text": "body", "label": "stars", **fields})


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_task(tmp_path: Path, suffix: str):
    task = load_task(reviews(tmp_path, suffix, text=["body", "other"]), None)
    assert task.label_names == ("bad", "good")
    assert task.train.first == TEXTS
    assert task.train.second == [f"pair {index}" for index in range(4)]
    assert task.devs["dev"].labels == [0.0, 1.0, 0.0, 1.0]
    assert task.tests == {}


@pytest.mark.parametrize("suffix", WRITERS)
def test_regressions_in_every_format(tmp_path: Path, suffix: str):
    rows = [{"body": text, "value": index / 4} for index, text in enumerate(TEXTS)]
    task = load_task(reviews(tmp_path, suffix, rows, label="value", type="regression"), None)
    assert task.regression
    assert task.train.labels == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("suffix", WRITERS)
def test_test_rows_need_no_label_and_theirs_is_not_looked_at(tmp_path: Path, suffix: str):
    recipe = reviews(tmp_path, suffix, test=str(tmp_path / f"test.{suffix}"))
    WRITERS[suffix](tmp_path / f"test.{suffix}", [{"body": "new"}, {"body": "newer"}])
    task = load_task(recipe, None)
    assert (task.tests["test"].first, task.tests["test"].labels) == (["new", "newer"], [])
    assert load_task(recipe, None, with_tests=False).tests == {}
    WRITERS[suffix](tmp_path / f"test.{suffix}", [{"body": "new", "stars": "unheard of"}])
    assert load_task(recipe, None).tests["test"].labels == []
    assert load_task(recipe, None).content_hash() != task.content_hash()


def test_a_csv_may_have_line_ends_in_quotes(tmp_path: Path):
    recipe = reviews(tmp_path, "csv")
    (tmp_path / "train.csv").write_text('body,stars\r\n"two\r\nlines",bad\r\n"say ""x""",good\r\n', encoding="utf-8")
    assert load_task(recipe, None).train.first == ["two\r\nlines", 'say "x"']


BAD_CSV = {
    "an open quote": ('body,stars\nx,bad\n"y,good\nz,bad\n', r"train\.csv:4 is not valid CSV: unexpected end of data"),
    "text after a quote": ('body,stars\n"x"y,bad\n', r"train\.csv:2 is not valid CSV: ',' expected after '\"'"),
    "a comma without quotes": ("body,stars\nx, y,bad\n", r"train\.csv:2 has 3 fields\n.*2: body, stars\n.*in quotes"),
    "an empty line": ("body,stars\nx,bad\n\ny,good\n", r"train\.csv:3 has 0 fields"),
    "tabs": ("body\tstars\nx\tbad\n", r"train\.csv:1 has no column 'body'"),
    "a column twice": ("body,stars,body\nx,bad,y\n", r"train\.csv:1 has 2 columns 'body'"),
    "no label": ("body,stars\nx,\n", r"train\.csv:2 has an empty text or label"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str):
    content, message = BAD_CSV[case]
    recipe = reviews(tmp_path, "csv")
    (tmp_path / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_task(recipe, None)


BAD_PARQUET = {
    "no such column": ([{"body": "x", "label": "a"}], r"train\.parquet has no column 'stars'.* body, label"),
    "no label": (
        [{"body": "x", "stars": 1.0}, {"body": "y", "stars": None}],
        r"train\.parquet:row 2: stars holds None",
    ),
    "not a number": ([{"body": "x", "stars": float("nan")}], r"train\.parquet:row 1: stars holds nan"),
    "texts that are numbers": ([{"body": 3, "stars": 1}], r"train\.parquet:row 1: body hold \[3\]\n.*strings"),
    "an empty label": ([{"body": "x", "stars": " "}], r"train\.parquet:row 1 has an empty text or label"),
    "one class": ([{"body": "x", "stars": 1}] * 3, r"train\.parquet: all 3 training examples of reviews have .*'1'"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet(tmp_path: Path, case: str):
    rows, message = BAD_PARQUET[case]
    recipe = reviews(tmp_path, "parquet")
    write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(DataError, match=message):
        load_task(recipe, None)


def test_a_torn_parquet_file_is_named(tmp_path: Path):
    recipe = reviews(tmp_path, "parquet")
    path = tmp_path / "train.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train\.parquet is not a whole Parquet file"):
        load_task(recipe, None)


def test_a_directory_is_no_file(tmp_path: Path):
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(DataError, match=r"train\.parquet is a directory"):
        load_task(TaskRecipe(name="x", train=str(tmp_path / "train.parquet"), dev="dev.tsv"), None)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the hub's layout, with named classes; no connection, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    classes = datasets.Features({"body": datasets.Value("string"), "stars": datasets.ClassLabel(names=["bad", "good"])})
    (tmp_path / "reviews").mkdir()
    for split, size in (("train", 10), ("validation", 4), ("test", 3)):
        columns = {"body": [f"{split} {index}" for index in range(size)], "stars": [index % 2 for index in range(size)]}
        datasets.Dataset.from_dict(columns, classes).to_parquet(tmp_path / "reviews" / f"{split}.parquet")
    return tmp_path / "reviews"


def of_data_set(name: Path | str, **fields: Any) -> TaskRecipe:
    return TaskRecipe(name="reviews", dataset=str(name), **{"text": "body", "label": "stars", **fields})


def test_a_data_set_of_a_local_directory(data_set: Path):
    task = load_task(of_data_set(data_set, test="test"), None)
    assert task.label_names == ("bad", "good"), "the names of the classes, not their numbers"
    assert (len(task.train), task.num_dev, task.tests["test"].first) == (10, 4, ["test 0", "test 1", "test 2"])
    parts = load_task(of_data_set(data_set, train="train[:80%]", dev="train[80%:]"), None)
    assert (parts.train.first[-1], parts.devs["dev"].first) == ("train 7", ["train 8", "train 9"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dev": "dev"}, r"Unknown split \"dev\".*validation"),
        ({"label": "rating"}, r"reviews, train has no column 'rating'; its columns are: body, stars"),
        ({"subset": "large"}, r"reviews \(large\) could not be loaded: .*large"),
        ({"revision": "a" * 40}, "revision 'a+' of the local data set"),
        ({"type": "regression"}, r"reviews, train:row 1 has the label 'bad'\n.*finite number"),
    ],
)
def test_a_data_set_that_does_not_fit_the_recipe(data_set: Path, fields: dict[str, str], message: str):
    with pytest.raises(DataError, match=message):
        load_task(of_data_set(data_set, **fields), None)


def test_without_a_connection_the_cached_copy_of_that_commit_will_do(
    data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(DataError, match=r"someone/reviews could not be loaded from the hub: .*\n.*connection"):
        load_task(of_data_set("someone/reviews"), None)
    assert "someone/reviews: what the hub has at its newest revision may change" in capsys.readouterr().err

    load_task(of_data_set(data_set), None)  # fills the cache: the hub's copies lie there by id and commit
    commit, another = "a" * 40, "b" * 40
    cached = next((tmp_path / "cache" / "reviews" / "default" / "0.0.0").glob("*/dataset_info.json")).parent
    there = tmp_path / "cache" / "someone___reviews" / "default" / "0.0.0"
    there.mkdir(parents=True)
    cached.rename(there / commit)
    assert len(load_task(of_data_set("someone/reviews", revision=commit), None).train) == 10
    with pytest.raises(DataError, match=rf"cached copy of someone/reviews is of commit {commit}\n.*commit {another}"):
        load_task(of_data_set("someone/reviews", revision=another), None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "RTE", "subset": "x"}, "subset belong to 'dataset', which is not given"),
        ({"name": "RTE", "dev": "dev.tsv"}, "dev: of own data, which needs 'train' or 'dataset' too"),
        ({"name": "RTE", "dataset": "a/b", "revision": "../x"}, "a revision of the hub"),
    ],
)
def test_recipes_that_contradict_themselves(task: dict[str, str], message: str):
    with pytest.raises(RecipeError, match=message):
        validate(FinetuneRecipe, {"kind": "finetune", "tasks": [task]}, "recipe")


def test_a_task_twice(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"tasks are given twice: \['RTE'\]"):
        validate(FinetuneRecipe, {"kind": "finetune", "tasks": [{"name": "RTE"}, {"name": "RTE"}]}, "recipe")


def test_a_resolved_recipe_can_be_read_again():
    recipe = FinetuneRecipe(tasks=[{"name": "RTE"}, {"name": "mine", "dataset": "a/b", "text": ["x", "y"]}])
    assert validate(FinetuneRecipe, recipe.model_dump(mode="json"), "recipe") == recipe
