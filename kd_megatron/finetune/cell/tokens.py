"""Texts -> token ids, once for all cells: kept on disk, so that the next model with the same tokenizer reads them.

Shapes: N texts (or pairs), T tokens of all of them together.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kd_megatron.console import logs
from kd_megatron.files import atomic
from kd_megatron.ranks import stages

CACHE = Path("data/finetune_tokens")  # may be removed at any time
VERSION = 1  # of the files' format
MIN_KEPT = 5000  # texts; fewer are tokenised in less time than a file is worth
CHUNK = 10_000  # texts tokenised at once: the library's objects take kilobytes for each


@dataclass(frozen=True)
class Tokens:
    """N tokenised texts, one after the other."""

    ids: np.ndarray  # [T] int32
    types: np.ndarray | None  # [T] uint8, where the model tells the texts of a pair apart
    lengths: np.ndarray  # [N] int64
    num_truncated: int  # texts that were longer than the limit

    def __len__(self) -> int:
        return len(self.lengths)


def tokenise(
    first: Sequence[str], second: Sequence[str] | None, tokenizer: Any, max_length: int, cache: Path = CACHE
) -> Tokens:
    """Tokenise N texts or pairs, cut at ``max_length`` tokens (of a pair, the longer text first).

    Args:
        max_length: special tokens count.
        cache: directory of the files of earlier calls.
    """
    identity = _identity(tokenizer) if len(first) >= MIN_KEPT else None
    if identity is None:
        return _tokenise(first, second, tokenizer, max_length)
    described = json.dumps([VERSION, identity, max_length, list(first), second and list(second)])
    path = cache / f"{hashlib.sha256(described.encode()).hexdigest()[:24]}.npz"
    found = _read(path, len(first))
    if found is None:
        found = _tokenise(first, second, tokenizer, max_length)
        _write(path, found)
    return found


def _tokenise(first: Sequence[str], second: Sequence[str] | None, tokenizer: Any, max_length: int) -> Tokens:
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    num_truncated = 0
    for start in range(0, len(first), CHUNK):
        stages.beat()
        part = slice(start, start + CHUNK)
        pairs = None if second is None else list(second[part])
        encoded = tokenizer(
            list(first[part]), pairs, truncation=True, max_length=max_length, return_attention_mask=False
        )
        num_truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
        lengths += map(len, encoded["input_ids"])
        ids.append(np.concatenate([np.array(text, np.int32) for text in encoded["input_ids"]]))
        if "token_type_ids" in encoded:
            types.append(np.concatenate([np.array(text, np.uint8) for text in encoded["token_type_ids"]]))
    all_types = np.concatenate(types) if types else None
    return Tokens(np.concatenate(ids), all_types, np.array(lengths, np.int64), num_truncated)


def _identity(tokenizer: Any) -> list[Any] | None:
    """All that decides what a tokenizer makes of a text; None when that cannot be told (one written in Python)."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for set_by_calls in ("truncation", "padding"):
        rules.pop(set_by_calls, None)
    sides = [tokenizer.truncation_side, tokenizer.model_input_names]
    return [type(tokenizer).__name__, rules, sides, version("tokenizers"), version("transformers")]


def _read(path: Path, num_texts: int) -> Tokens | None:
    """What `_write` wrote; None when there is no such file, or not a whole one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            types = stored["types"] if "types" in stored.files else None
            found = Tokens(stored["ids"], types, stored["lengths"], int(stored["num_truncated"]))
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, KeyError):
        return None
    whole = len(found) == num_texts and int(found.lengths.sum()) == len(found.ids)
    return found if whole and (types is None or len(types) == len(found.ids)) else None


def _write(path: Path, tokens: Tokens) -> None:
    """Other ranks may do the same. Without room the work goes on without a file."""
    arrays: dict[str, Any] = {
        "ids": tokens.ids,
        "lengths": tokens.lengths,
        "num_truncated": np.array(tokens.num_truncated),
    }
    if tokens.types is not None:
        arrays["types"] = tokens.types
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path, by_many=True) as aside, aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        logs.warn(f"token ids are not kept in {path.parent} for the next run: {error.strerror}")
