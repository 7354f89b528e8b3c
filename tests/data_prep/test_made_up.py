"""Made-up shard sets pass the checks that real ones pass, and the loader and transformers read them."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.data import made_up
from data_prep import verify
from kd_megatron.data.loader import Loader
from kd_megatron.recipe import DataRecipe


@pytest.mark.parametrize("vocab_size", [300, made_up.BERT_VOCABULARY, 70_000])
def test_it_is_a_whole_shard_set(tmp_path: Path, vocab_size: int):
    shards = made_up.write_made_up(tmp_path / "shards", 20_000, valid_tokens=3_000, vocab_size=vocab_size)
    manifest = verify.verify(shards, full=True)
    assert (manifest.tokens("train"), manifest.tokens("valid")) == (20_000, 3_000)
    loader = Loader(DataRecipe.model_validate({"shards": [{"path": str(shards)}]}), run_seed=0)
    batch = loader.batch(0, 64)
    assert loader.vocab_size == vocab_size
    assert batch.clean_ids.max() < vocab_size
    assert len(np.unique(batch.clean_ids[:, 1:-1])) > min(vocab_size, 64 * 126) // 2
    assert len(AutoTokenizer.from_pretrained(shards / "tokenizer")) == vocab_size


def test_documents_are_many_and_end_with_the_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(made_up, "_CHUNK_TOKENS", 7_000)  # several chunks, the last one short
    shards = made_up.write_made_up(tmp_path / "shards", 50_001, vocab_size=300)
    entry = verify.verify(shards).split("train")[0]
    assert 50_001 / made_up.DOCUMENT_TOKENS / 2 < entry.documents < 4 * 50_001 / made_up.DOCUMENT_TOKENS
    ids = np.fromfile(shards / "train-00000.bin", np.uint16)
    assert (ids == made_up.SPECIALS.index("[SEP]")).sum() == entry.documents
    assert ids[-1] == made_up.SPECIALS.index("[SEP]")
