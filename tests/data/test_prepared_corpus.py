"""From text to batches: what data_prep writes is what the loader reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.prepare import prepare
from kd_megatron.data.loader import Loader
from kd_megatron.files.manifest import read_manifest
from kd_megatron.recipe import CorpusRecipe, DataRecipe

WORDS = "the of and to in a is was for that with on as by it from at old river house stone night"
LENGTH = 24


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = np.random.default_rng(0)
    return [
        " ".join(generator.choice(WORDS.split(), generator.integers(60, 90))) + f" {number}." for number in range(120)
    ]


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    source = directory / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {
        "kind": "corpus",
        "name": "small",
        "output": str(directory / "shards"),
        "sources": [{"type": "files", "paths": [str(source)]}],
        "tokenizer": {"train": {"vocab_size": 120}},
        "valid_fraction": 0.2,
        "num_shards": 2,
    }
    return prepare(CorpusRecipe.model_validate(recipe), workers=1)


def test_the_windows_hold_every_document_once_as_the_tokenizer_encodes_it(corpus: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    data = DataRecipe.model_validate({"shards": [{"path": str(corpus)}], "sequence_length": LENGTH})
    tokenizer = AutoTokenizer.from_pretrained(Loader(data, run_seed=0).tokenizer_path)
    encoded = {tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    seen: list[tuple[int, ...]] = []
    for split in ("train", "valid"):
        loader = Loader(data, run_seed=0, split=split)
        assert (loader.special.sep_id, loader.special.mask_id) == (tokenizer.sep_token_id, tokenizer.mask_token_id)
        assert loader.vocab_size == len(tokenizer)
        windows = [source.windows.gather(np.arange(len(source.windows))) for source in loader._sources]
        assert len(windows[0]) == sum(s.tokens // (LENGTH - 2) for s in read_manifest(corpus).split(split))
        for shard in loader._sources[0].shard_set.shards:
            ends = np.cumsum(shard.lengths)
            seen += [tuple(part.tolist()[:-1]) for part in np.split(shard.tokens, ends[:-1])]
        assert (windows[0][:, 0] == tokenizer.cls_token_id).all()
    assert len(seen) == len(texts)
    assert set(seen) == encoded


def test_training_and_validation_share_no_document(corpus: Path) -> None:
    data = DataRecipe.model_validate({"shards": [{"path": str(corpus)}], "sequence_length": LENGTH})
    held: dict[str, set[bytes]] = {}
    for split in ("train", "valid"):
        shards = Loader(data, run_seed=0, split=split)._sources[0].shard_set.shards
        held[split] = {part.tobytes() for s in shards for part in np.split(s.tokens, np.cumsum(s.lengths)[:-1])}
    assert held["train"]
    assert held["valid"]
    assert not held["train"] & held["valid"]
