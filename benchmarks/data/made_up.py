"""A shard set of made-up token ids with a made-up vocabulary: for measuring speed, which no meaning changes."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.indexed import IndexedWriter
from data_prep.write import token_dtype
from kd_megatron.files.manifest import TOKENIZER, Manifest, ShardEntry, file_sha256, vocabulary_hash, write_manifest

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
BERT_VOCABULARY = 30_522
MEDIAN_TOKENS, LENGTH_SIGMA = 310, 1.0  # of a document's length, log-normal: many short ones and a long tail
DOCUMENT_TOKENS = 512  # the average that follows: median * exp(sigma^2 / 2)
_CHUNK_TOKENS = 1 << 22


def write_made_up(
    directory: Path,
    num_tokens: int,
    valid_tokens: int = 1 << 14,
    vocab_size: int = BERT_VOCABULARY,
    seed: int = 0,
    num_shards: int = 1,
) -> Path:
    """Write a whole shard set into ``directory``, which is empty or does not exist. Returns it.

    Ids are uniform over all but the special tokens; documents end with [SEP], their lengths are log-normal as those of
    an encyclopaedia. The tokenizer is a WordPiece one whose words are ``w5``, ``w6``, ...

    Args:
        directory: where; its parent may be missing too.
        num_tokens: of the training split, shared evenly by ``num_shards`` shards.
        valid_tokens: of the held-out split, one shard.
        vocab_size: decides whether ids take two bytes or four.
        seed: of everything that is random.
        num_shards: at most ``num_tokens``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sha256 = write_tokenizer(directory / TOKENIZER, vocab_size)
    bounds = [num_tokens * i // num_shards for i in range(num_shards + 1)]
    sizes = {f"train-{i:05d}": bounds[i + 1] - bounds[i] for i in range(num_shards)} | {"valid-00000": valid_tokens}
    shards = [_write_shard(directory, name, size, vocab_size, seed) for name, size in sizes.items()]
    manifest = Manifest(
        name=directory.name,
        dtype=token_dtype(vocab_size),
        vocab_size=vocab_size,
        tokenizer_sha256=sha256,
        shards=shards,
        sources=[{"type": "made_up", "seed": seed}],
    )
    write_manifest(directory, manifest)  # last: complete, or not a set
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


def _write_shard(directory: Path, name: str, num_tokens: int, vocab_size: int, seed: int) -> ShardEntry:
    dtype = token_dtype(vocab_size)
    bin_path, idx_path = directory / f"{name}.bin", directory / f"{name}.idx"
    generator = np.random.default_rng([seed, *name.encode()])
    num_documents, left = 0, num_tokens
    with IndexedWriter(bin_path, dtype) as writer:
        while left:
            ids = generator.integers(len(SPECIALS), vocab_size, min(left, _CHUNK_TOKENS), dtype=np.dtype(dtype))
            ends = _ends(generator, len(ids))
            ids[ends - 1] = SPECIALS.index("[SEP]")
            writer.add(ids, np.diff(ends, prepend=0).astype(np.int32))
            num_documents += len(ends)
            left -= len(ids)
        writer.finish(idx_path)
    return ShardEntry(
        name=name,
        split="train" if name.startswith("train") else "valid",
        documents=num_documents,
        tokens=num_tokens,
        bin_bytes=bin_path.stat().st_size,
        bin_sha256=file_sha256(bin_path),
        idx_sha256=file_sha256(idx_path),
    )


def _ends(generator: np.random.Generator, num_tokens: int) -> NDArray[np.int64]:
    """Where documents of random lengths end that share ``num_tokens``; the last end is ``num_tokens``."""
    drawn = generator.lognormal(np.log(MEDIAN_TOKENS), LENGTH_SIGMA, 2 * num_tokens // DOCUMENT_TOKENS + 64)
    ends = np.cumsum(np.maximum(drawn, 1).astype(np.int64))
    return np.append(ends[ends < num_tokens], num_tokens)
