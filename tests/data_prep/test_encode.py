"""Encoding: what is remembered changes no id, documents end, special tokens are text."""

import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from harbour_book import english_document
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from data_prep import encode
from data_prep.encode import Encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "##s", "mask", "[", "]", "ship", "e", "##e", "s"]
WORDS += [
    "lighthouse",
    "##keeper",
    "(",
    ")",
    ",",
    ".",
    "_",
    "1",
    "##2",
    "\u4e2d",
    "\u00e9",
    "\u03c3",
    "\u03c2",
    "a",
    "##b",
]
END = 3
# What the normalizer deletes, replaces, splits at or takes apart: control characters, other spaces, accents (one
# composed, one combining, one that reorders), Chinese, capitals with a special lower case, and a lone [MASK].
NASTY = [
    "\x00",
    "\x01",
    "\x1c",
    "\x7f",
    "\x85",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\ufffd",
    "\u200b",
    "\t",
    "\r",
    "\n",
    "\n\n",
    " ",
]
NASTY += [
    "  ",
    "\u00e9",
    "e\u0301",
    "\u0301",
    "\u0327\u0301",
    "\u4e2d",
    "\u03a3",
    "\u0130",
    "\ufb01",
    "[MASK]",
    "[SEP]",
    "_",
    "(the,",
]
NASTY += [
    "sea",
    "Seas",
    "THE",
    "ships.",
    "12",
    "ab\x01s",
    "a" * 101,
    "\U0001f600",
    "lighthousekeeper",
    "\u00bf",
    "\u2014",
]


def make(tmp_path: Path, lowercase: bool = True, **changes: object) -> Path:
    """The directory of a BERT tokenizer; ``changes`` set parts of it."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:5]])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def documents(encoded: encode.Encoded) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])]


def with_the_library(directory: Path, texts: list[str]) -> list[list[int]]:
    """Every document by one call of the library, as Megatron-LM does it."""
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [[*tokenizer.encode(text, add_special_tokens=False).ids, END] for text in texts]


def nasty_texts(seed: int, num_texts: int) -> list[str]:
    chooser = random.Random(seed)
    return ["".join(chooser.choices(NASTY, k=chooser.randint(0, 40))) for _ in range(num_texts)]


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_are_those_of_the_library_for_nasty_texts(tmp_path, lowercase):
    directory = make(tmp_path, lowercase)
    encoder = Encoder(directory, END)
    assert encoder._words is not None
    for seed in range(3):  # what the first calls taught serves the later ones
        texts = nasty_texts(seed, 300)
        assert documents(encoder.encode(texts)) == with_the_library(directory, texts)


def test_ids_are_those_of_the_library_for_prose(tmp_path):
    directory = make(tmp_path)
    texts = [english_document(index) for index in range(50)] + ["", " ", "\n"]
    assert documents(Encoder(directory, END).encode(texts)) == with_the_library(directory, texts)


def test_an_old_word_is_not_encoded_again(tmp_path, monkeypatch):
    seen: list[str] = []

    def spy(tokenizer, texts):
        seen.extend(texts)
        return library(tokenizer, texts)

    library = encode.encode_with_library
    monkeypatch.setattr(encode, "encode_with_library", spy)
    encoder = Encoder(make(tmp_path), END)
    first, again = encoder.encode(["the sea, the ship."]), encoder.encode(["the ship, the (sea)"])
    assert sorted(seen) == sorted(["the", "sea", ",", "ship", ".", "(", ")"])
    assert documents(first) == [[5, 6, 19, 5, 11, 20, END]]
    assert documents(again) == [[5, 11, 19, 5, 17, 6, 18, END]]


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_MAX_REMEMBERED", 30)
    directory = make(tmp_path)
    encoder = Encoder(directory, END)
    for seed in range(20):
        texts = nasty_texts(seed, 3)
        assert documents(encoder.encode(texts)) == with_the_library(directory, texts)
        assert len(encoder._words._known) <= 30


def test_long_stretches_are_not_remembered(tmp_path):
    encoder = Encoder(make(tmp_path), END)
    encoder.encode(["x" * 65, "(" + "y" * 65, "z" * 64])
    assert max(map(len, encoder._words._known)) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"normalizer": normalizers.Replace(" ", "_"), "pre_tokenizer": pre_tokenizers.BertPreTokenizer()},
    ],
)
def test_a_tokenizer_of_another_kind_is_left_to_the_library(tmp_path, changes):
    directory = make(tmp_path, **changes)
    encoder = Encoder(directory, END)
    assert encoder._words is None
    texts = nasty_texts(0, 50)
    assert documents(encoder.encode(texts)) == with_the_library(directory, texts)


def test_an_added_token_with_a_space_in_it_is_left_to_the_library(tmp_path):
    directory = make(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens(["the sea"])
    tokenizer.save(str(directory / "tokenizer.json"))
    encoder = Encoder(directory, END)
    assert documents(encoder.encode(["ship the sea"])) == [[11, len(WORDS), END]]


def test_documents_end_and_special_tokens_are_text(tmp_path):
    encoded = Encoder(make(tmp_path), END).encode(["the [MASK] sea", "ship"])
    assert documents(encoded) == [[5, 9, 8, 10, 6, END], [11, END]]
    assert (encoded.ids.dtype, encoded.lengths.dtype) == (np.int32, np.int32)


def test_encoding_never_truncates(tmp_path):
    directory = make(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(directory / "tokenizer.json"))
    assert Encoder(directory, END).encode(["the sea " * 5000, "ship"]).lengths.tolist() == [10001, 2]


def test_encoding_in_groups_changes_nothing(tmp_path, monkeypatch):
    texts = [english_document(index) for index in range(30)]
    encoder = Encoder(make(tmp_path), END)
    whole = documents(encoder.encode(texts))
    monkeypatch.setattr(encode, "_ENCODE_CHARACTERS", 1000)
    assert documents(encoder.encode(texts)) == whole


def test_no_texts_are_no_documents(tmp_path):
    encoded = Encoder(make(tmp_path), END).encode([])
    assert len(encoded.ids) == len(encoded.lengths) == 0


def test_a_unigram_model_never_takes_text_for_a_special_token(tmp_path: Path) -> None:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<mask>", 0.0)]
    pieces += [(piece, -2.0) for piece in ("\u2581a", "\u2581b", "b", "a", "<", "/", "s", ">")]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name, _ in pieces[:5]])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = Encoder(tmp_path, end_id=2).encode(["a</s>b a", "b <mask> a"])
    ends = np.cumsum(ids.lengths) - 1
    assert np.flatnonzero(np.isin(ids.ids, [0, 1, 2, 4])).tolist() == ends.tolist()
    assert ids.ids.tolist() == [5, 3, 7, 5, 2, 6, 3, 3, 5, 2]  # what was spelled is unknown, as is a lone Metaspace
