import json
from pathlib import Path

import datasets
import pytest

from kd_megatron.errors import DataError, RecipeError
from kd_megatron.finetune import glue, glue_rows
from kd_megatron.finetune.tasks import load_task
from kd_megatron.schema import TaskRecipe

GLUE_PATH = Path(__file__).parents[3] / "shared" / "data" / "glue"
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


def test_glue_directory_without_the_task_or_its_files(tmp_path: Path):
    (tmp_path / "RTE").mkdir()
    with pytest.raises(DataError, match=r"MRPC does not exist; .* holds: RTE"):
        load_task(TaskRecipe(name="MRPC"), str(tmp_path))
    with pytest.raises(DataError, match=r"RTE/train\.tsv does not exist"):
        load_task(TaskRecipe(name="RTE"), str(tmp_path))
    (tmp_path / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(DataError, match=r"RTE/dev\.tsv does not exist"):
        load_task(TaskRecipe(name="RTE"), str(tmp_path))


def test_mnli_scores_matched_and_reports_mismatched(tmp_path: Path):
    rows = "sentence1\tsentence2\tgold_label\na\tb\tneutral\nc\td\tentailment\n"
    (tmp_path / "MNLI").mkdir()
    for split in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / "MNLI" / f"{split}.tsv").write_text(rows)
    task = load_task(TaskRecipe(name="MNLI"), str(tmp_path))
    assert list(task.devs) == ["dev_matched", "dev_mismatched"]
    assert task.train.labels == [1.0, 0.0]
    assert task.partial_split
    assert "train 2 of 392702" in task.note


def test_torn_rows_of_the_official_qqp_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    header, good = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", "1\t2\t3\ta\tb\t{}\n"
    (tmp_path / "QQP").mkdir()
    (tmp_path / "QQP" / "train.tsv").write_text(header + good.format(0) + "4\t5\ttorn\n" + good.format(1))
    (tmp_path / "QQP" / "dev.tsv").write_text(header + good.format(0))
    assert len(load_task(TaskRecipe(name="QQP"), str(tmp_path)).train) == 2
    assert "1 torn rows were left out, lines [3]" in capsys.readouterr().err


def test_hub_rows_equal_local_rows(tmp_path: Path):
    (tmp_path / "RTE").mkdir()
    header = "index\tsentence1\tsentence2\tlabel\n"
    for split in ("train", "dev"):
        (tmp_path / "RTE" / f"{split}.tsv").write_text(header + "0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n")
    local = glue_rows.read_local("RTE", tmp_path, with_tests=True).train
    hub = datasets.Dataset.from_dict({"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [1, 0]})
    rows = glue_rows.rows_from_hub("RTE", hub, "train")
    assert [(r.first, r.second, r.label) for r in rows] == [(r.first, r.second, r.label) for r in local]
    with pytest.raises(DataError, match="unknown label index -1"):
        glue_rows.rows_from_hub("RTE", [{"sentence1": "a", "sentence2": "b", "label": -1}], "train")


def test_the_hub_out_of_reach_is_one_clear_message(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not be loaded from the hub: no route\n.*\n.*set glue_path"):
        load_task(TaskRecipe(name="CoLA"), None)


@pytest.mark.skipif(not GLUE_PATH.is_dir(), reason="needs the GLUE files of ../shared/data/glue")
@pytest.mark.parametrize("name", glue.GLUE)
def test_real_glue(name: str):
    task = load_task(TaskRecipe(name=name), str(GLUE_PATH))
    substitutes = {
        "QNLI": "not GLUE's split: train 4363 of 104743, dev 1100 of 5463",
        "QQP": "not GLUE's split: train 19878 of 363846, dev 3619 of 40430",
        "MNLI": "not GLUE's split: train 6388 of 392702, dev 2490 of 9815",
    }
    assert task.note == substitutes.get(name, "")
    assert task.partial_split == (name in substitutes)
    if name == "CoLA":
        assert task.train.first[0] == "Our friends won't buy this analysis, let alone the next one we propose."
        assert task.train.labels.count(1.0) == 6023
