"""Special tokens as transformers saves them, for both families of tokenizer, and what else may be in the files."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_shards import SPECIALS, VOCAB_SIZE, write_tokenizer

from kd_megatron.data.special_tokens import read_special_tokens
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import vocabulary_hash

WORDS = {f"w{i}": i for i in range(5, 60)}


def bert() -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab=SPECIALS | WORDS)


def roberta() -> Any:
    from transformers import RobertaTokenizerFast

    specials = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    return RobertaTokenizerFast(vocab=specials | WORDS, merges=[])


@pytest.mark.parametrize("make", [bert, roberta])
def test_ids_and_vocabulary_are_those_of_transformers(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    special = read_special_tokens(tmp_path, vocabulary_hash(tokenizer.get_vocab()), len(tokenizer))
    for role in ("cls", "sep", "mask", "pad", "unk"):
        assert getattr(special, f"{role}_id") == getattr(tokenizer, f"{role}_token_id")
    assert special.all_ids == tuple(sorted(tokenizer.all_special_ids))


def test_a_token_written_as_a_mapping_and_a_further_special_token(tmp_path: Path) -> None:
    sha256 = write_tokenizer(tmp_path / "t")
    config, described = tmp_path / "t" / "tokenizer_config.json", tmp_path / "t" / "tokenizer.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cls_token": {"content": "[CLS]"}}))
    content = json.loads(described.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 77, "content": "w77"})
    described.write_text(json.dumps(content))
    special = read_special_tokens(tmp_path / "t", sha256, VOCAB_SIZE)
    assert special.cls_id == SPECIALS["[CLS]"]
    assert special.all_ids == (0, 1, 2, 3, 4, 77)


def test_a_vocabulary_larger_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    sha256 = write_tokenizer(tmp_path / "t")
    with pytest.raises(DataError, match=f"{VOCAB_SIZE} tokens"):
        read_special_tokens(tmp_path / "t", sha256, VOCAB_SIZE - 1)
