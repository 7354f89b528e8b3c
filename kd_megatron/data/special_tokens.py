"""The tokenizer of a shard set, as far as reading it needs: special ids and vocabulary hash.

Read with the small `tokenizers` library: importing transformers takes seconds and brings nothing here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.errors import DataError
from kd_megatron.files.manifest import vocabulary_hash

_ROLES = ("cls", "sep", "mask", "pad", "unk")
_REPAIR = "prepare the shard set again, or restore its tokenizer directory"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, under BERT's names whatever the tokenizer calls them."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unk_id: int
    all_ids: tuple[int, ...]  # these and every other token the tokenizer marks as special, ascending


def read_special_tokens(directory: Path, tokenizer_sha256: str, vocab_size: int) -> SpecialTokens:
    """The special tokens of the tokenizer in ``directory``.

    Raises:
        DataError: a file is missing or malformed, a special token is missing, or the vocabulary is not the one the
            shards were made with.
    """
    from tokenizers import Tokenizer

    config = _read_json(directory / "tokenizer_config.json")
    described = _read_json(directory / "tokenizer.json")
    try:
        vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise DataError(given=f"{directory / 'tokenizer.json'} is malformed: {error}", fix=_REPAIR) from error
    _check_vocabulary(directory, vocabulary, tokenizer_sha256, vocab_size)
    ids = {f"{role}_id": _special_id(directory, config, vocabulary, f"{role}_token") for role in _ROLES}
    try:
        marked = {int(token["id"]) for token in described.get("added_tokens", []) if token.get("special")}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory / 'tokenizer.json'}: its added_tokens are malformed", fix=_REPAIR) from error
    return SpecialTokens(**ids, all_ids=tuple(sorted(marked | set(ids.values()))))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise OSError("no such file")
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(
            given=f"{path} cannot be read: {error}",
            expected="a fast tokenizer as save_pretrained of transformers writes it",
            fix=_REPAIR,
        ) from error


def _special_id(directory: Path, config: dict[str, Any], vocabulary: dict[str, int], role: str) -> int:
    entry = config.get(role)
    token = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(token, str) or token not in vocabulary:
        raise DataError(
            given=f"{directory / 'tokenizer_config.json'} has {role}={token!r}, which its vocabulary lacks",
            expected="cls_token, sep_token, mask_token, pad_token and unk_token, each in the vocabulary",
            fix="use a tokenizer made for masked-language modelling and prepare the shard set again",
        )
    return vocabulary[token]


def _check_vocabulary(directory: Path, vocabulary: dict[str, int], tokenizer_sha256: str, vocab_size: int) -> None:
    found = vocabulary_hash(vocabulary)
    if found != tokenizer_sha256 or max(vocabulary.values(), default=-1) + 1 != vocab_size:
        raise DataError(
            given=f"the tokenizer in {directory} is not the one its shards were made with: "
            f"vocabulary hash {found[:12]}, {len(vocabulary)} tokens",
            expected=f"vocabulary hash {tokenizer_sha256[:12]}, {vocab_size} tokens, as the manifest says",
            fix=_REPAIR,
        )
