"""GLUE's nine tasks in its own layout and the hub's: the same rows, official sizes, test rows without labels."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import real_inputs

from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks import glue
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.recipe import TaskRecipe

GLUE_PATH = Path(real_inputs.HOME) / "glue"


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


def test_mnli_with_its_mismatched_rows_alone_is_refused(tmp_path: Path):
    (tmp_path / "MNLI").mkdir()
    for split in ("train", "dev_mismatched"):
        (tmp_path / "MNLI" / f"{split}.tsv").write_text("sentence1\tsentence2\tgold_label\na\tb\tneutral\n")
    with pytest.raises(DataError, match=r"has dev_mismatched\.tsv and no dev_matched\.tsv"):
        load_task(TaskRecipe(name="MNLI"), str(tmp_path))


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
    local = glue.read_local("RTE", tmp_path, with_tests=True).train
    hub = datasets.Dataset.from_dict({"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [1, 0]})
    rows = glue.rows_from_hub("RTE", hub, "train")
    assert [(r.first, r.second, r.label) for r in rows] == [(r.first, r.second, r.label) for r in local]
    with pytest.raises(DataError, match="unknown label index -1"):
        glue.rows_from_hub("RTE", [{"sentence1": "a", "sentence2": "b", "label": -1}], "train")


def test_the_hub_out_of_reach_is_one_clear_message(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not be loaded from the hub: no route\n.*\n.*set glue_path"):
        load_task(TaskRecipe(name="CoLA"), None)


@real_inputs.needs("glue")
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


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cola(directory: Path) -> Path:
    for split, source in (("train", "gj04"), ("dev", "cj99")):
        write(directory / "CoLA" / f"{split}.tsv", f"{source}\t1\t\tGood {split}.", f"{source}\t0\t*\tBad the {split}.")
    return directory


@pytest.mark.parametrize("header", ["source\tlabel\tmark\tsentence", "sentence\tlabel", "label,sentence"])
def test_a_cola_with_a_header_line_is_not_glues(tmp_path: Path, header: str):
    path = cola(tmp_path) / "CoLA" / "dev.tsv"
    path.write_text(header.replace(",", "\t") + "\n" + path.read_text())
    with pytest.raises(DataError, match=r"CoLA/dev\.tsv:1 is a header line: .*\n.*source, label, mark, sentence"):
        load_task(TaskRecipe(name="CoLA"), str(tmp_path))


def test_test_rows_are_read_where_they_are(tmp_path: Path):
    assert load_task(TaskRecipe(name="CoLA"), str(cola(tmp_path))).tests == {}
    write(tmp_path / "CoLA" / "test.tsv", "index\tsentence", "0\tOne.", "1\tTwo.")  # unlike train, with a header
    task = load_task(TaskRecipe(name="CoLA"), str(tmp_path))
    assert (task.tests["test"].first, task.tests["test"].labels) == (["One.", "Two."], [])
    assert load_task(TaskRecipe(name="CoLA"), str(tmp_path), with_tests=False).tests == {}


@pytest.mark.parametrize("lines", [["1\tOne.", "0\tTwo."], ["0\tOne.", "2\tThree."], ["0\tOne.", "0\tOne."]])
def test_test_rows_out_of_order_would_be_scored_wrongly(tmp_path: Path, lines: list[str]):
    write(cola(tmp_path) / "CoLA" / "test.tsv", "index\tsentence", *lines)
    with pytest.raises(DataError, match=r"test\.tsv:\d has the index '\d'\n.*GLUE's order.*\n.*remove it"):
        load_task(TaskRecipe(name="CoLA"), str(tmp_path))


def test_labels_of_test_rows_are_not_looked_at(tmp_path: Path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for split, second in (("train", "a"), ("dev", "b"), ("test", "c")):
        rows = [f"{label if split != 'test' else 'secret'}\t1\t2\tx {label}\t{second}" for label in (0, 1)]
        write(tmp_path / "MRPC" / f"{split}.tsv", header, *rows)
    task = load_task(TaskRecipe(name="MRPC"), str(tmp_path))
    assert task.tests["test"] == type(task.train)(["x 0", "x 1"], ["c", "c"], [])


@pytest.mark.parametrize("file", glue.AX_FILES)
def test_the_diagnostic_set_is_a_test_split_of_mnli(tmp_path: Path, file: str):
    for split in ("train", "dev_matched", "dev_mismatched"):
        rows = [f"{split} {label}\tb\t{label}" for label in ("neutral", "entailment")]
        write(tmp_path / "MNLI" / f"{split}.tsv", "sentence1\tsentence2\tgold_label", *rows)
    for split in ("test_matched", "test_mismatched"):
        write(tmp_path / "MNLI" / f"{split}.tsv", "index\tsentence1\tsentence2", f"0\t{split}\tb")
    write(tmp_path / file, "index\tsentence1\tsentence2", "0\tThe cat sat.\tThe cat did not sit.")
    task = load_task(TaskRecipe(name="MNLI"), str(tmp_path))
    assert list(task.tests) == ["test_matched", "test_mismatched", "AX"]
    assert task.tests["AX"].first == ["The cat sat."]


def hub_rows(split: str, labels: list[int]) -> datasets.Dataset:
    columns = {"premise": [f"{split} {index}" for index in range(len(labels))], "hypothesis": ["b"] * len(labels)}
    return datasets.Dataset.from_dict({**columns, "label": labels, "idx": list(range(len(labels)))})


def test_the_hubs_splits_have_our_names(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(name: str, subset: str, revision: str, split: None) -> dict[str, Any]:
        asked.append((name, subset, revision))
        if subset == "ax":
            return {"test": hub_rows("ax", [-1])}
        labelled = {
            split: hub_rows(split, [0, 2]) for split in ("train", "validation_matched", "validation_mismatched")
        }
        return {**labelled, **{split: hub_rows(split, [-1, -1]) for split in ("test_matched", "test_mismatched")}}

    monkeypatch.setattr(glue, "load_dataset", load)
    task = load_task(TaskRecipe(name="MNLI"), None)
    assert asked == [(glue.HUB_DATASET, "mnli", glue.HUB_REVISION), (glue.HUB_DATASET, "ax", glue.HUB_REVISION)]
    assert list(task.devs) == ["dev_matched", "dev_mismatched"]
    assert task.devs["dev_mismatched"].first == ["validation_mismatched 0", "validation_mismatched 1"]
    assert task.train.labels == [0.0, 2.0]
    assert {name: split.first for name, split in task.tests.items()} == {
        "test_matched": ["test_matched 0", "test_matched 1"],
        "test_mismatched": ["test_mismatched 0", "test_mismatched 1"],
        "AX": ["ax 0"],
    }


def test_hub_test_rows_out_of_order():
    rows = hub_rows("test_matched", [-1, -1]).select([1, 0])
    with pytest.raises(DataError, match=r"MNLI/test_matched:0 has the idx 1\n.*GLUE's order"):
        glue.rows_from_hub("MNLI", rows, "test_matched")


@real_inputs.needs("glue")
def test_a_real_test_file_whose_labels_are_there_is_read_without_them():
    task = load_task(TaskRecipe(name="MRPC"), str(GLUE_PATH))
    assert (len(task.tests["test"]), task.tests["test"].labels) == (glue.GLUE["MRPC"].num_test["test"], [])
