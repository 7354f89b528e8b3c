"""Text to ids, in a worker process: needs the light `tokenizers` library alone.

BERT's WordPiece treats every word by itself, and most words of a text came before: their ids are remembered instead
of being worked out again. The ids are those of the library, whose work is a few microseconds for each new word and
was as much for each old one.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

_ENCODE_CHARACTERS = 1_000_000  # per call: bounds the memory of the library's tables and of what is new in one call
_MAX_REMEMBERED = 1 << 19  # stretches of text, about 100 MB; then all are forgotten and the commonest soon back
_LONGEST_REMEMBERED = 64  # characters: longer stretches rarely come again
_ASCII_WORDS = re.compile("[0-9A-Za-z]+|[^0-9A-Za-z]")


@dataclass(frozen=True)
class Encoded:
    """Documents as they lie in a shard, one after the other."""

    ids: NDArray[np.int32]  # [tokens]
    lengths: NDArray[np.int32]  # [documents], in tokens, the one that ends the document included


class Encoder:
    """Texts to ids: each document's own and, at its end, the id that ends a document.

    Args:
        directory: holds ``tokenizer.json``.
        end_id: of [SEP] (or the tokenizer's own separator).
    """

    def __init__(self, directory: Path, end_id: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A text that mentions "[MASK]" must not put the mask's id into the corpus.
        self._tokenizer.encode_special_tokens = True
        self._end = np.int32(end_id).tobytes()
        described = json.loads(self._tokenizer.to_str())
        self._words = Words(self._tokenizer) if has_independent_words(described) else None
        self._forbidden, self._unknown = _spelled_specials(described)

    def encode(self, texts: list[str]) -> Encoded:
        """The documents of ``texts``, in their order."""
        documents: list[bytes] = []  # int32, as they lie in memory
        for group in groups(texts, _ENCODE_CHARACTERS):
            ids = self._words.encode(group) if self._words else self._encode(group)
            documents.extend(document + self._end for document in ids)
        lengths = np.array([len(document) for document in documents], np.int32) // np.dtype(np.int32).itemsize
        return Encoded(np.frombuffer(b"".join(documents), np.int32), lengths)

    def _encode(self, texts: list[str]) -> list[bytes]:
        found = encode_with_library(self._tokenizer, texts)
        if not self._forbidden:
            return found
        each = [np.frombuffer(document, np.int32) for document in found]
        return [np.where(np.isin(ids, self._forbidden), np.int32(self._unknown), ids).tobytes() for ids in each]


def _spelled_specials(described: dict[str, Any]) -> tuple[list[int], int]:
    """Ids of special tokens that a text can spell, and the id to put there; no ids where it cannot.

    A Unigram model has "</s>" and its like as pieces of its own, beside the added tokens that
    ``encode_special_tokens`` keeps from being looked for.
    """
    if described["model"].get("type") != "Unigram" or described["model"].get("unk_id") is None:
        return [], 0
    unknown = int(described["model"]["unk_id"])
    return [token["id"] for token in described["added_tokens"] if token["special"] and token["id"] != unknown], unknown


def encode_with_library(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[bytes]:
    """The ids of each text, int32, without special tokens."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32).tobytes() for encoding in encodings]


def has_independent_words(described: dict[str, Any]) -> bool:
    """Whether the ids of "A B" are those of "A" followed by those of "B", whatever A and B are: BERT's tokenizers.

    Their normalizer replaces single characters (and reorders accents, never across a space), their pre-tokenizer
    splits at white space and around punctuation, their model takes words one by one. An added token that is not
    special is looked for in the whole text, before all that. ``described`` is the tokenizer's own JSON.
    """
    kinds = [(described[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    is_plain = all(token["special"] for token in described["added_tokens"])
    return is_plain and kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]


class Words:
    """Encodes with a tokenizer that `has_independent_words`, and remembers every word and stretch of words.

    A stretch is what stands between two spaces or line ends: "(say,". Those of plain ASCII are made of their words,
    "(", "say" and ",", of which there are far fewer.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}

    def encode(self, texts: list[str]) -> list[bytes]:
        """As `encode_with_library`."""
        stretches = [text.replace("\n", " ").split(" ") for text in texts]
        learned = self._learn(set[str]().union(*stretches) - self._known.keys())
        encoded = [b"".join(map(self._known.__getitem__, stretch)) for stretch in stretches]
        self._forget(learned)
        return encoded

    def _learn(self, stretches: set[str]) -> set[str]:
        """Add ``stretches`` and the words in them to what is known; returns all that is new."""
        words = {stretch: _words(stretch) for stretch in stretches}
        new = set[str]().union(*words.values()) - self._known.keys()
        ordered = list(new)
        self._known.update(zip(ordered, encode_with_library(self._tokenizer, ordered), strict=True))
        for stretch, its_words in words.items():
            self._known[stretch] = b"".join(map(self._known.__getitem__, its_words))
        return new | stretches

    def _forget(self, learned: set[str]) -> None:
        for stretch in learned:
            if len(stretch) > _LONGEST_REMEMBERED:
                del self._known[stretch]
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()


def _words(stretch: str) -> list[str]:
    # What is neither ASCII nor printable may vanish in the normalizer and join its neighbours: left to the library.
    return _ASCII_WORDS.findall(stretch) if stretch.isascii() and stretch.isprintable() else [stretch]


def groups(texts: Iterable[str], most_characters: int) -> Iterator[list[str]]:
    """``texts`` in lists that end where they have so many characters or more."""
    group: list[str] = []
    num_characters = 0
    for text in texts:
        group.append(text)
        num_characters += len(text)
        if num_characters >= most_characters:
            yield group
            group, num_characters = [], 0
    if group:
        yield group
