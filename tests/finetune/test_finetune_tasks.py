import json
from pathlib import Path

import pytest

from kd_megatron.errors import DataError, RecipeError
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.recipe import TaskRecipe

ROWS = "text\tlabel\ngood one\tyes\nbad one\tno\nfine\tyes\n"


def own(tmp_path: Path, train: str = ROWS, dev: str = ROWS, suffix: str = "tsv", **fields: object) -> TaskRecipe:
    paths = [tmp_path / f"train.{suffix}", tmp_path / f"dev.{suffix}"]
    for path, content in zip(paths, (train, dev), strict=True):
        path.write_text(content, encoding="utf-8")
    return TaskRecipe(name="mine", train=str(paths[0]), dev=str(paths[1]), **fields)


def test_own_tsv(tmp_path: Path):
    task = load_task(own(tmp_path), None)
    assert task.label_names == ("no", "yes")
    assert task.train.first == ["good one", "bad one", "fine"]
    assert task.train.labels == [1.0, 0.0, 1.0]
    assert (task.partial_split, task.note, task.metric.title) == (False, "", "accuracy")


def test_own_jsonl_pairs_and_regression(tmp_path: Path):
    rows = "".join(json.dumps({"a": f"a{i}", "b": "b", "value": i / 2}) + "\n" for i in range(4))
    task = load_task(own(tmp_path, rows, rows, "jsonl", text=["a", "b"], label="value", type="regression"), None)
    assert task.regression
    assert task.train.second == ["b"] * 4
    assert task.train.labels == [0.0, 0.5, 1.0, 1.5]


def test_quotes_are_text(tmp_path: Path):
    task = load_task(own(tmp_path, 'text\tlabel\n"open quote\tyes\nsay "x"\tno\n', ROWS), None)
    assert task.train.first == ['"open quote', 'say "x"']


def test_subsets_are_fixed_and_nested(tmp_path: Path):
    content = "text\tlabel\n" + "".join(f"t{i}\t{'yes' if i % 2 else 'no'}\n" for i in range(100))
    small, again, large = (load_task(own(tmp_path, content, max_train_examples=limit), None) for limit in (20, 20, 50))
    assert small.train.first == again.train.first
    assert set(small.train.first) < set(large.train.first)
    assert small.train.first != [f"t{i}" for i in range(20)]
    assert small.note == "train: fixed random subset of 20 of 100"
    assert small.content_hash() == again.content_hash() != large.content_hash()


BAD_FILES = {
    "too few fields": ("text\tlabel\nx\tyes\nlost\nz\tno\n", ROWS, r"train\.tsv:3 has 1 field\n"),
    "too many fields": ("text\tlabel\nx\tyes\ty\nz\tno\n", ROWS, r"train\.tsv:2 has 3 fields"),
    "no such column": ("body\tlabel\nx\tyes\n", ROWS, r"train\.tsv:1 has no column 'text'"),
    "only a header": ("text\tlabel\n", ROWS, "has no rows"),
    "empty": ("", ROWS, r"train\.tsv is empty"),
    "empty text": ("text\tlabel\n \tyes\nz\tno\n", ROWS, r"train\.tsv:2 has an empty text"),
    "one class": ("text\tlabel\nx\tyes\nz\tyes\n", "text\tlabel\nx\tyes\n", r"train\.tsv: all 2 .* 'yes'"),
    "unknown label": (ROWS, "text\tlabel\nx\tyes\nz\tmaybe\n", r"dev\.tsv:3 has the unknown label 'maybe'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, case: str):
    train, dev, message = BAD_FILES[case]
    with pytest.raises(DataError, match=message):
        load_task(own(tmp_path, train, dev), None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"train\.jsonl:2 is not valid JSON"),
        ("[1]", r"train\.jsonl:2 holds list"),
        ('{"text": "x"}', r"train\.jsonl:2 has no column 'label'"),
        ('{"text": 3, "label": "no"}', r"train\.jsonl:2: text hold"),
        ('{"text": "x", "label": null}', r"train\.jsonl:2: label holds None"),
        ('{"text": "x", "label": Infinity}', r"train\.jsonl:2: label holds inf"),
        pytest.param('{"text": "x", "label": ' + "9" * 5000 + "}", "jsonl:2 is not valid JSON", id="5,000 digits"),
        pytest.param("[" * 100_000, "jsonl:2 is not valid JSON", id="100,000 brackets"),
        ('{"text": "half \\ud800", "label": "no"}', r"train\.jsonl:2 is not a text: surrogates"),
    ],
)
def test_bad_jsonl_rows(tmp_path: Path, line: str, message: str):
    content = '{"text": "x", "label": "yes"}\n' + line + "\n"
    with pytest.raises(DataError, match=message):
        load_task(own(tmp_path, content, content, "jsonl"), None)


@pytest.mark.parametrize("label", ["high", "nan", "inf"])
def test_a_regression_needs_finite_numbers(tmp_path: Path, label: str):
    with pytest.raises(DataError, match=rf"train\.tsv:3 has the label '{label}'"):
        load_task(own(tmp_path, f"text\tlabel\nx\t1.5\ny\t{label}\n", type="regression"), None)


def test_bytes_that_are_not_utf8(tmp_path: Path):
    recipe = own(tmp_path)
    Path(str(recipe.train)).write_bytes(b"text\tlabel\nx\tyes\n\xff\xfe\tno\n")
    with pytest.raises(DataError, match=r"train\.tsv:3 is not UTF-8"):
        load_task(recipe, None)


def test_recipes_that_name_no_task(tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean 'SST-2'"):
        load_task(TaskRecipe(name="sst2"), str(tmp_path))
    with pytest.raises(RecipeError, match="has 'train' but no 'dev'"):
        load_task(TaskRecipe(name="mine", train="x.tsv"), None)
    with pytest.raises(DataError, match=r"unknown kind '\.txt'"):
        load_task(TaskRecipe(name="mine", train="x.txt", dev="y.txt"), None)
    with pytest.raises(DataError, match=r"absent\.tsv does not exist"):
        load_task(TaskRecipe(name="mine", train=str(tmp_path / "absent.tsv"), dev="y.tsv"), None)


def test_dev_rows_that_are_training_rows_too_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dev = "text\tlabel\nbad one\tyes\nunseen\tno\nfine\tno\n"
    load_task(own(tmp_path, ROWS, dev), None)
    assert "warning: mine: 2 of 3 rows of dev have the text of a training row" in capsys.readouterr().err
    load_task(own(tmp_path, ROWS, "text\tlabel\nunseen\tno\n"), None)
    assert capsys.readouterr().err == ""


def test_a_pair_is_shared_when_both_texts_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train, dev = "a\tb\tlabel\nx\ty\tyes\nx\tz\tno\n", "a\tb\tlabel\nx\ty\tno\ny\tx\tyes\n"
    load_task(own(tmp_path, train, dev, text=["a", "b"]), None)
    assert "1 of 2 rows of dev" in capsys.readouterr().err


@pytest.mark.parametrize(("metric", "warned"), [("accuracy", False), ("matthews", True), ("f1_accuracy", True)])
def test_dev_rows_with_one_label_that_the_metric_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, warned: bool
):
    load_task(own(tmp_path, ROWS, "text\tlabel\nx\tyes\nz\tyes\n", metric=metric), None)
    assert ("mine: all 2 rows of dev have the same label" in capsys.readouterr().err) == warned


def test_labels_that_the_metric_cannot_take(tmp_path: Path):
    three = "text\tlabel\nx\tyes\ny\tno\nz\tperhaps\n"
    with pytest.raises(
        RecipeError, match=r"metric 'f1_accuracy' with 3 classes\n.*at most 2 classes\n.*accuracy or matthews"
    ):
        load_task(own(tmp_path, three, three, metric="f1_accuracy"), None)
    with pytest.raises(RecipeError, match="metric 'pearson_spearman' does not fit classification"):
        load_task(own(tmp_path, metric="pearson_spearman"), None)
    values = "text\tlabel\nx\t1\ny\t2\n"
    with pytest.raises(RecipeError, match=r"metric 'matthews' does not fit regression\n.*pearson_spearman"):
        load_task(own(tmp_path, values, values, type="regression", metric="matthews"), None)


def test_a_regression_with_one_value_teaches_nothing(tmp_path: Path):
    with pytest.raises(DataError, match=r"train\.tsv: all 2 training examples of mine have the label 1\.5"):
        load_task(own(tmp_path, "text\tlabel\nx\t1.5\ny\t1.50\n", type="regression"), None)


def test_a_subset_with_one_label_says_what_to_raise(tmp_path: Path):
    content = "text\tlabel\n" + "".join(f"t{i}\t{'yes' if i else 'no'}\n" for i in range(100))
    with pytest.raises(DataError, match=r"all 2 training examples .*\n.*\n.*raise max_train_examples"):
        load_task(own(tmp_path, content, max_train_examples=2), None)


def test_own_data_under_a_glue_name_is_marked(tmp_path: Path):
    recipe = own(tmp_path).model_copy(update={"name": "RTE"})
    task = load_task(recipe, None)
    assert task.partial_split
    assert task.note == "own data under the name of GLUE's RTE"
