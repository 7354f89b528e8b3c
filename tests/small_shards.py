"""Small shard sets, written by megatron-core's own builder so that its format, not ours, is what is read."""

import json
import warnings
from pathlib import Path

import numpy as np

from kd_megatron.files.manifest import TOKENIZER, Manifest, ShardEntry, file_sha256, vocabulary_hash, write_manifest

SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SEP = SPECIALS["[SEP]"]
VOCAB_SIZE = 300


def write_tokenizer(directory: Path, first_word: str = "w") -> str:
    """A fast WordPiece tokenizer of VOCAB_SIZE tokens; returns its vocabulary hash."""
    from tokenizers import AddedToken, Tokenizer, models

    vocabulary = SPECIALS | {f"{first_word}{i}": i for i in range(len(SPECIALS), VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
    config = {f"{role}_token": token for role, token in roles.items()} | {"tokenizer_class": "BertTokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return vocabulary_hash(tokenizer.get_vocab())


def random_documents(seed: int, num_documents: int) -> list[list[int]]:
    """Documents of 0 to 119 random words, some [UNK] among them, each ending in [SEP]."""
    generator = np.random.default_rng(seed)
    words = [i for i in range(VOCAB_SIZE) if i >= len(SPECIALS) or i == SPECIALS["[UNK]"]]
    return [[*generator.choice(words, generator.integers(0, 120)).tolist(), SEP] for _ in range(num_documents)]


def write_shard(directory: Path, name: str, split: str, documents: list[list[int]], dtype: str) -> ShardEntry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    bin_path, idx_path = directory / f"{name}.bin", directory / f"{name}.idx"
    builder = IndexedDatasetBuilder(str(bin_path), dtype=getattr(np, dtype))
    for document in documents:
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(str(idx_path))
    return ShardEntry(
        name=name,
        split=split,
        documents=len(documents),
        tokens=sum(map(len, documents)),
        bin_bytes=bin_path.stat().st_size,
        bin_sha256=file_sha256(bin_path),
        idx_sha256=file_sha256(idx_path),
    )


def write_shard_set(
    directory: Path, shards: dict[str, list[list[int]]], dtype: str = "uint16", first_word: str = "w"
) -> Path:
    """A whole shard set; ``shards`` maps a shard's name, such as "train-00000", to its documents."""
    sha256 = write_tokenizer(directory / TOKENIZER, first_word)
    entries = [write_shard(directory, name, name.split("-")[0], docs, dtype) for name, docs in shards.items()]
    manifest = Manifest(
        name=directory.name, dtype=dtype, vocab_size=VOCAB_SIZE, tokenizer_sha256=sha256, shards=entries
    )
    write_manifest(directory, manifest)
    return directory
