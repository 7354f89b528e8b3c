"""A shard set of made-up token ids with a made-up vocabulary: for measuring speed, which no meaning changes."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.write import index_builder, token_dtype
from kd_megatron.manifest import MANIFEST, TOKENIZER, Manifest, ShardEntry, file_sha256, vocabulary_hash

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
BERT_VOCABULARY = 30_522
DOCUMENT_TOKENS = 512  # of an average document; real ones are of this order
_CHUNK_TOKENS = 1 << 22


def write_made_up(
    directory: Path, num_tokens: int, valid_tokens: int = 1 << 14, vocab_size: int = BERT_VOCABULARY, seed: int = 0
) -> Path:
    """Write a whole shard set into ``directory``, which must not exist: one shard for each split. Returns it.

    Ids are uniform over all but the special tokens; documents end with [SEP] and are of 1 to 2 `DOCUMENT_TOKENS` - 1
    tokens. The tokenizer is a WordPiece one whose words are ``w5``, ``w6``, ...
    """
    directory.mkdir(parents=True)
    sha256 = write_tokenizer(directory / TOKENIZER, vocab_size)
    sizes = {"train": num_tokens, "valid": valid_tokens}
    shards = [
        _write_shard(directory, split, size, vocab_size, seed + i) for i, (split, size) in enumerate(sizes.items())
    ]
    manifest = Manifest(
        name=directory.name,
        dtype=token_dtype(vocab_size),
        vocab_size=vocab_size,
        tokenizer_sha256=sha256,
        shards=shards,
        sources=[{"type": "made_up", "seed": seed}],
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return directory


def write_tokenizer(directory: Path, vocab_size: int) -> str:
    """The made-up tokenizer in Hugging Face format; returns its vocabulary's hash."""
    from tokenizers import AddedToken, Tokenizer, models

    vocabulary = {name: i for i, name in enumerate(SPECIALS)} | {f"w{i}": i for i in range(len(SPECIALS), vocab_size)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {f"{role}_token": token for role, token in ROLES.items()} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return vocabulary_hash(vocabulary)


def _write_shard(directory: Path, split: str, num_tokens: int, vocab_size: int, seed: int) -> ShardEntry:
    name, dtype = f"{split}-00000", token_dtype(vocab_size)
    bin_path, idx_path = directory / f"{name}.bin", directory / f"{name}.idx"
    builder, generator = index_builder(bin_path, dtype), np.random.default_rng(seed)
    num_documents, left = 0, num_tokens
    while left:
        ids = generator.integers(len(SPECIALS), vocab_size, min(left, _CHUNK_TOKENS), dtype=np.dtype(dtype))
        for document in np.split(ids, _ends(generator, len(ids))[:-1]):
            document[-1] = SPECIALS.index("[SEP]")
            builder.add_document(document, [len(document)])
            num_documents += 1
        left -= len(ids)
    builder.finalize(str(idx_path))
    return ShardEntry(
        name=name,
        split="train" if split == "train" else "valid",
        documents=num_documents,
        tokens=num_tokens,
        bin_bytes=bin_path.stat().st_size,
        bin_sha256=file_sha256(bin_path),
        idx_sha256=file_sha256(idx_path),
    )


def _ends(generator: np.random.Generator, num_tokens: int) -> NDArray[np.int64]:
    """Where documents of random lengths end that share ``num_tokens``; the last end is ``num_tokens``."""
    lengths = generator.integers(1, 2 * DOCUMENT_TOKENS, 2 * num_tokens // DOCUMENT_TOKENS + 64)
    ends = np.cumsum(lengths)
    return np.append(ends[ends < num_tokens], num_tokens)
