"""A small English corpus with every nuisance that cleaning handles, and recipes over it."""

import random

import pytest
from harbour_book import english_document, write_jsonl

from kd_megatron.recipe import CorpusRecipe


@pytest.fixture
def corpus(tmp_path):
    """300 good documents, 20 of them twice, and 4 that the filters drop."""
    texts = [english_document(index) for index in range(300)]
    texts += texts[:20]
    texts += ["too short", "1234567890 " * 100, "Der Hund und die Katze schlafen heute nicht. " * 20, "the sea " * 4000]
    random.Random(0).shuffle(texts)
    return write_jsonl(tmp_path / "corpus.jsonl", texts)


@pytest.fixture
def make_recipe(tmp_path):
    """A recipe over the given files; keyword arguments replace keys."""

    def make(*paths, **keys):
        raw = {
            "kind": "corpus",
            "name": "harbour",
            "output": str(tmp_path / "out"),
            "sources": [{"type": "files", "paths": [str(path) for path in paths], "licence": "CC0"}],
            "clean": {"min_characters": 100, "max_characters": 20_000},
            "tokenizer": {"train": {"vocab_size": 300}},
            "valid_fraction": 0.1,
            "num_shards": 3,
            "num_workers": 1,
        }
        return CorpusRecipe.model_validate(raw | keys)

    return make
