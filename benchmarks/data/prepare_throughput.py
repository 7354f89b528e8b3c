"""`prepare` measured beside Megatron-LM's way of tokenizing, on the same documents with the same tokenizer.

`prepare` does more in its time: it cleans, drops duplicates, sorts documents into shards and checks what it wrote. The
documents are clean and distinct beforehand, so both write the same ones, and that is checked before a figure is shown.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.in_turn import TurnTaker
from benchmarks.data.megatron_way import import_builder, write_document_by_document
from benchmarks.data.shard_index import read_index
from data_prep import installed_docs, tokenize
from data_prep.clean import clean_text, reason_to_drop
from data_prep.prepare import prepare
from data_prep.write import token_dtype
from kd_megatron.console import logs
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import read_manifest
from kd_megatron.recipe import CleanRecipe, CorpusRecipe, TrainTokenizerRecipe

MEGATRON = "Megatron-LM"  # one process
NUM_WORKERS = 2
VOCABULARY = 30_522  # BERT's
_TOKENIZER_CHARACTERS = 5_000_000  # trained on: a vocabulary's speed does not depend on more


def embedded_documents(num_characters: int) -> list[str]:
    """Docstrings of the installed packages, a module each, cleaned and distinct: about so many characters, or all."""
    texts: dict[str, None] = {}
    found = 0
    with logs.progress_bar("MB") as bar:
        task = bar.add_task("reading docstrings", total=num_characters / 1e6, note="")
        for text in _clean_documents():
            if found >= num_characters:
                break
            if text not in texts:
                texts[text] = None
                found += len(text)
                bar.update(task, completed=found / 1e6)
    return list(texts)


def _clean_documents() -> Iterator[str]:
    for module in installed_docs.list_modules():
        text = clean_text(installed_docs.module_text(module))
        if reason_to_drop(text, CleanRecipe()) is None:
            yield text


def cases(texts: list[str], directory: Path) -> list[TurnTaker]:
    """Both ways from a ``.jsonl`` file of ``texts`` to shards, in ``directory``; run once to know that they agree.

    Libraries that the parent needs are imported before a clock starts; what `prepare`'s workers import counts.
    """
    corpus = directory / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    tokenizer = _tokenizer(texts, directory)
    end_id, dtype = tokenizer.sep_token_id, token_dtype(len(tokenizer))
    theirs = partial(write_document_by_document, corpus, directory / "tokenizer", end_id, directory / "theirs", dtype)
    recipe = _recipe(corpus, directory)
    import_builder()
    num_tokens = theirs()
    prepare(recipe, NUM_WORKERS)
    require_same_documents(Path(recipe.output), directory / "theirs")
    shape = f"{corpus.stat().st_size / 1e6:.2g} MB of text"
    return [
        TurnTaker("data/prepare", shape, MEGATRON, num_tokens, theirs, ratio_to=MEGATRON),
        TurnTaker(
            name="data/prepare",
            shape=shape,
            backend=f"ours, {NUM_WORKERS} workers",
            num_tokens=num_tokens,
            work=partial(prepare, recipe, NUM_WORKERS),
            before=partial(shutil.rmtree, recipe.output),
            ratio_to=MEGATRON,
        ),
    ]


def _tokenizer(texts: list[str], directory: Path) -> Any:
    first, found = [], 0
    for text in texts:
        if found >= _TOKENIZER_CHARACTERS:
            break
        first.append(text)
        found += len(text)
    tokenizer = tokenize.train(first, TrainTokenizerRecipe(vocab_size=VOCABULARY), directory / "tokenizer-text.txt")
    tokenizer.save_pretrained(directory / "tokenizer")
    return tokenizer


def _recipe(corpus: Path, directory: Path) -> CorpusRecipe:
    return CorpusRecipe.model_validate(
        {
            "kind": "corpus",
            "name": "bench",
            "output": str(directory / "ours"),
            "sources": [{"type": "files", "paths": [str(corpus)], "licence": "each package's own"}],
            "tokenizer": {"load": str(directory / "tokenizer")},
            "valid_fraction": 0.0,
            "num_shards": 2 * NUM_WORKERS,
        }
    )


def require_same_documents(shard_set: Path, prefix: Path) -> None:
    """Raise `DataError` unless both hold the same documents, in whatever order."""
    manifest = read_manifest(shard_set)
    ours = Counter[bytes]()
    for entry in manifest.shards:
        ours.update(_documents(shard_set / entry.name, manifest.dtype))
    theirs = Counter(_documents(prefix, manifest.dtype))
    if ours != theirs:
        raise DataError(
            given=f"{shard_set} and {prefix} differ in {(ours - theirs).total() + (theirs - ours).total()} documents",
            expected="the same documents from `prepare` and from megatron-core: nothing is timed otherwise",
            fix="report this",
        )


def _documents(prefix: Path, dtype: str) -> Iterator[bytes]:
    content, itemsize = Path(f"{prefix}.bin").read_bytes(), np.dtype(dtype).itemsize
    index = read_index(Path(f"{prefix}.idx"))
    for start, length in zip(index.pointers.tolist(), index.lengths.tolist(), strict=True):
        yield content[start : start + length * itemsize]
