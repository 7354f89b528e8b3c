"""A small English corpus with every nuisance that cleaning handles, and recipes over it."""

import json
import random

import pytest

from kd_megatron.schema import CorpusRecipe

_SENTENCES = (
    "The keeper of the lighthouse wrote the weather into his book every evening before the lamp was lit.",
    "Most of the letters that came to the harbour were about ships which had not been seen for weeks.",
    "She had learned to read the clouds from her mother, and she could tell a storm two days ahead.",
    "When the wind turned to the north, the boats stayed in and the men mended their nets by the fire.",
    "There was only one road over the hill, and in winter it was more often closed than open.",
    "They would have sold the house if anyone had wanted to live so far from the town.",
)


def english_document(index: int, num_sentences: int = 8) -> str:
    """A document of its own: sentences in an order that ``index`` fixes, and a line that names it."""
    chosen = random.Random(index).choices(_SENTENCES, k=num_sentences)
    return f"Chapter {index} of the harbour book.\n\n" + " ".join(chosen)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


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
