import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import sentences
from transformers import PreTrainedTokenizerFast

from kd_megatron.finetune.cell import tokens
from kd_megatron.finetune.cell.batches import cut_in_words, encode_task
from kd_megatron.finetune.cell.model import load_tokenizer
from kd_megatron.finetune.cell.tokens import Tokens, tokenise
from kd_megatron.finetune.tasks.metrics import METRICS
from kd_megatron.finetune.tasks.tasks import Split, Task

TEXTS = [text for text, _ in sentences(40, 3)]


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(tiny_model, 32)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own
    return tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokens, "MIN_KEPT", 1)
    return tmp_path / "cache"


def task_of(first: list[str], second: list[str] | None = None) -> Task:
    split = Split(first, second, [float(i % 2) for i in range(len(first))])
    return Task(
        "mine", ("a", "b"), METRICS["accuracy"], split, {"dev": split}, False, "", {"test": Split(first, second, [])}
    )


def same(one: Tokens, other: Tokens) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*(dataclasses.astuple(each) for each in (one, other)), strict=True))


def test_batches_are_what_the_tokenizer_pads_itself(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokens, "CHUNK", 7)
    second = list(reversed(TEXTS))
    encoded = encode_task(task_of(TEXTS, second), tokenizer, 9)
    indices = np.array([3, 0, 31, 8])
    texts, pairs = ([source[i] for i in indices] for source in (TEXTS, second))
    expected = tokenizer(texts, pairs, truncation=True, max_length=9, padding=True, return_tensors="pt")
    for split in encoded.splits().values():
        inputs, labels = split.batch(indices, torch.device("cpu"))
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
    assert labels.tolist() == [], "a test split has no labels"
    assert encoded.train.batch(indices, torch.device("cpu"))[1].tolist() == [1, 0, 1, 0]


def test_token_ids_are_read_again_and_not_made_again(tokenizer: PreTrainedTokenizerFast, cache: Path):
    made = tokenise(TEXTS, TEXTS, tokenizer, 16, cache)
    (path,) = cache.iterdir()
    before = path.stat().st_mtime_ns
    assert same(tokenise(TEXTS, TEXTS, tokenizer, 16, cache), made)
    assert path.stat().st_mtime_ns == before
    np.savez(path, ids=made.ids + 1, types=made.types, lengths=made.lengths, num_truncated=0)
    assert tokenise(TEXTS, TEXTS, tokenizer, 16, cache).ids[0] == made.ids[0] + 1, "it is the file that was read"


def test_whatever_changes_the_ids_changes_the_file(tokenizer: PreTrainedTokenizerFast, cache: Path):
    made = tokenise(TEXTS, TEXTS, tokenizer, 16, cache)
    assert len(tokenise(TEXTS[1:], TEXTS[1:], tokenizer, 16, cache)) == 39
    assert tokenise(TEXTS, TEXTS, tokenizer, 5, cache).lengths.max() == 5
    assert len(tokenise(TEXTS, None, tokenizer, 16, cache).ids) < len(made.ids)
    tokenizer.add_tokens(["film"])
    tokenizer.add_tokens(["lov"])
    assert not np.array_equal(tokenise(TEXTS, TEXTS, tokenizer, 16, cache).ids, made.ids)
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["torn", "empty", "other", "inconsistent"])
def test_a_damaged_file_is_made_again(tokenizer: PreTrainedTokenizerFast, cache: Path, damage: str):
    made = tokenise(TEXTS, TEXTS, tokenizer, 16, cache)
    (path,) = cache.iterdir()
    if damage == "other":
        np.savez(path, something=made.ids)
    elif damage == "inconsistent":
        np.savez(path, ids=made.ids[:-1], types=made.types, lengths=made.lengths, num_truncated=0)
    else:
        path.write_bytes(path.read_bytes()[: 300 if damage == "torn" else 0])
    assert same(tokenise(TEXTS, TEXTS, tokenizer, 16, cache), made)
    assert same(tokenise(TEXTS, TEXTS, tokenizer, 16, cache), made)
    assert [file.name for file in cache.iterdir()] == [path.name]


def test_without_room_the_work_goes_on(
    tokenizer: PreTrainedTokenizerFast, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tokens.atomic.os, "replace", full)
    assert len(tokenise(TEXTS, TEXTS, tokenizer, 16, cache)) == 40
    assert "No space left on device" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_few_texts_leave_no_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    tokenise(TEXTS, None, tokenizer, 16, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cut_texts_are_counted_and_put_into_words(tokenizer: PreTrainedTokenizerFast):
    lengths = encode_task(task_of(TEXTS), tokenizer, 32).train.lengths
    for limit in (32, 7, 3):
        encoded = encode_task(task_of(TEXTS), tokenizer, limit)
        assert encoded.train.tokens.num_truncated == (lengths > limit).sum()
        said = cut_in_words(encoded, limit)
        num_cut = int((lengths > limit).sum())
        if limit == 32:
            assert said == ""
        elif limit == 7:
            assert f"texts are cut at max_length=7 tokens: train {num_cut} of 40, dev {num_cut} of 40" in said
        else:
            assert "EVERY text is longer than max_length=3 tokens (train 40 of 40, dev 40 of 40, test 40 of 40)" in said
