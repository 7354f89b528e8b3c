import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kd_megatron.errors import DataError
from kd_megatron.finetune.tasks import embedded
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.recipe import TaskRecipe

SIZES = {"train": 64, "dev": 16}


Task = tuple[str, dict[str, list[tuple[str, str]]]]


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "MAX_MODULES", 30)
        return list(embedded._documents())


@pytest.fixture(params=embedded.TASKS)
def task(request: pytest.FixtureRequest, documents: list[Any], monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(embedded, "_documents", lambda: iter(documents))
    return request.param, embedded.build(request.param, SIZES["train"], SIZES["dev"])


def test_balanced_and_no_text_in_both_splits(task: Task):
    name, splits = task
    labels = set(embedded.ALIASES) if name == "docs_package" else {"intact", "swapped"}
    for split, size in SIZES.items():
        counts = {label: [row[1] for row in splits[split]].count(label) for label in labels}
        assert counts == dict.fromkeys(labels, size // len(labels))
    texts = [text.lower() for rows in splits.values() for text, _ in rows]
    assert len(set(texts)) == len(texts)
    assert not any("\t" in text or "\n" in text for text in texts)


def test_no_package_name_is_left_to_read_off(task: Task):
    name, splits = task
    if name != "docs_package":
        pytest.skip("names are masked in docs_package alone")
    aliases = "|".join(alias for names in embedded.ALIASES.values() for alias in names)
    leaks = [text for rows in splits.values() for text, _ in rows if re.search(rf"\b({aliases})\b", text, re.I)]
    assert leaks == []


@pytest.mark.parametrize("text", ["torch.nn", "see PyTorch", "SymPyDeprecationWarning", "a pd.Series", "Hugging Face"])
def test_masking(text: str):
    assert embedded.MASK in embedded._NAMES.sub(embedded.MASK, text)


@pytest.mark.parametrize("text", ["update", "the pdf of x", "transform", "hfoo"])
def test_masking_leaves_other_words(text: str):
    assert embedded._NAMES.sub(embedded.MASK, text) == text


def test_a_swap_trades_two_plain_words():
    words = ["Return", "the", "largest", "value", "of", "an", "array."]
    swapped = embedded._swap(words)
    assert swapped is not None
    assert sorted(swapped) == sorted(words)
    assert (swapped[0], swapped[-1]) == (words[0], words[-1])
    assert sum(a != b for a, b in zip(words, swapped, strict=True)) == 2
    assert embedded._swap(words) == swapped
    assert embedded._swap(["Return", "Value", "the", "the."]) is None


def test_made_once_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def build(name: str) -> dict[str, list[tuple[str, str]]]:
        made.append(name)
        return {split: [(f'{split} "a"', "intact"), (f"{split} b", "swapped")] for split in ("train", "dev")}

    monkeypatch.setattr(embedded, "build", build)
    monkeypatch.setattr(embedded, "CACHE", tmp_path)
    first, second = (embedded.read("docs_swapped", tmp_path) for _ in range(2))
    assert made == ["docs_swapped"]
    assert first == second
    assert first[0][0].first == 'train "a"'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_making_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(ValueError, match="not enough values"):
        embedded._write(tmp_path / "task-key", {"train": [("a", "b")], "dev": [("a row without its label",)]})
    assert list(tmp_path.iterdir()) == []


def test_an_embedded_task_takes_no_files_of_its_own():
    with pytest.raises(ValidationError, match="dev, test: of own data, but an embedded task brings all of its own"):
        TaskRecipe(name="docs_package", train="embedded", dev="mine.tsv", test="new.csv")


def test_an_unknown_embedded_task():
    with pytest.raises(DataError, match="embedded task 'docs_size'"):
        load_task(TaskRecipe(name="docs_size", train="embedded"), None)
