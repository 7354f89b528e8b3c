"""One shard: ids that do not fit are refused, finished shards are not written again."""

import json
from dataclasses import replace

import numpy as np
import pytest
from harbour_book import english_document

from data_prep import tokenize, write
from data_prep.assign import document_digest
from data_prep.encode import Encoded
from data_prep.indexed import IndexedWriter
from kd_megatron.errors import DataError
from kd_megatron.recipe import TrainTokenizerRecipe


@pytest.fixture
def job(tmp_path):
    texts = [english_document(index) for index in range(20)]
    tokenizer = tokenize.train(texts, TrainTokenizerRecipe(vocab_size=300), tmp_path / "scratch.txt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    spooled = [*texts, texts[0]]
    (tmp_path / "spool.jsonl").write_text("".join(json.dumps(text) + "\n" for text in spooled))
    (tmp_path / "spool.digests").write_bytes(b"".join(map(document_digest, spooled)))
    return write.ShardJob(
        name="train-00000",
        spool=tmp_path / "spool.jsonl",
        directory=tmp_path,
        tokenizer=tmp_path / "tokenizer",
        end_id=tokenizer.sep_token_id,
        vocab_size=len(tokenizer),
        deduplicate=True,
    )


def test_a_shard_and_its_entry(job, tmp_path):
    result = write.write_shard(job)
    assert result.entry.documents == 20
    assert result.duplicates == 1
    assert result.text_bytes == sum(len(english_document(index)) for index in range(20))
    assert not list(tmp_path.glob("spool.*"))
    assert {path.name for path in tmp_path.glob("train*")} == {f"train-00000.{kind}" for kind in ("bin", "idx", "json")}
    before = (tmp_path / "train-00000.bin").stat().st_mtime_ns
    assert write.write_shard(job) == result
    assert (tmp_path / "train-00000.bin").stat().st_mtime_ns == before


@pytest.mark.parametrize(("ids", "vocab_size"), [([5, 300], 300), ([65_536], 65_500), ([4, -1], 300)])
def test_an_id_outside_the_vocabulary_is_refused(ids, vocab_size):
    encoded = Encoded(np.array(ids, np.int32), np.array([len(ids)], np.int32))
    with pytest.raises(DataError, match=f"token id {ids[-1]}"):
        write.require_ids_in_range(encoded, vocab_size, "train-00000")


def test_a_wrong_id_ends_the_shard_before_anything_is_published(job, tmp_path):
    with pytest.raises(DataError, match="token id"):
        write.write_shard(replace(job, vocab_size=10))
    assert job.spool.exists()
    assert not (tmp_path / "train-00000.bin").exists()


def test_wide_ids_survive(tmp_path):
    """A vocabulary past 65,500 is stored as int32: nothing wraps."""
    encoded = Encoded(np.array([0, 65_536, 249_999], np.int32), np.array([3], np.int32))
    write.require_ids_in_range(encoded, 250_000, "x")
    with IndexedWriter(tmp_path / "x.bin", write.token_dtype(250_000)) as writer:
        writer.add(encoded.ids, encoded.lengths)
        writer.finish(tmp_path / "x.idx")
    assert np.fromfile(tmp_path / "x.bin", np.int32).tolist() == [0, 65_536, 249_999]
