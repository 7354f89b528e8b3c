"""Tokenizers: loading every form, and training the same ids twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from harbour_book import english_document

from data_prep import tokenize
from kd_megatron.errors import ModelError
from kd_megatron.files.manifest import vocabulary_hash
from kd_megatron.recipe import TrainTokenizerRecipe

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "##s", "mask", "[", "]", "ship"]


def train(tmp_path, vocab_size=300, lowercase=True):
    texts = (english_document(index) for index in range(100))
    recipe = TrainTokenizerRecipe(vocab_size=vocab_size, lowercase=lowercase)
    return tokenize.train(texts, recipe, tmp_path / "scratch.txt")


def word_list(tmp_path, words=WORDS):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path


def test_a_trained_tokenizer_is_a_bert_tokenizer(tmp_path):
    tokenizer = train(tmp_path)
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokenize.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert len(tokenizer) <= 300
    ids = tokenizer("The Lighthouse keeper [MASK]").input_ids
    assert (ids[0], ids[-2], ids[-1]) == (2, 4, 3)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the lighthouse keeper"
    assert not (tmp_path / "scratch.txt").exists()


def test_case_is_kept_when_asked(tmp_path):
    assert any(token.isupper() for token in train(tmp_path, lowercase=False).get_vocab().keys() - set(WORDS))
    assert not any(token.isupper() for token in train(tmp_path).get_vocab().keys() - set(WORDS))


def test_training_gives_the_same_ids_in_every_process(tmp_path):
    """The library's own trainer does not: its hash maps are seeded per process."""
    here = vocabulary_hash(train(tmp_path).get_vocab())
    script = (
        "import sys; sys.path.insert(0, 'tests/data_prep'); from pathlib import Path; import test_tokenize as t; "
        f"print(t.vocabulary_hash(t.train(Path({str(tmp_path)!r})).get_vocab()))"
    )
    for _ in range(2):
        command = [sys.executable, "-c", script]
        assert (
            subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.strip() == here
        )


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    tokenizer = train(tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = tokenize.load(str(tmp_path / "saved"))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("There was a storm.").input_ids == tokenizer("There was a storm.").input_ids


def test_a_word_list_is_a_tokenizer(tmp_path):
    tokenizer = tokenize.load(str(word_list(tmp_path)))
    assert tokenizer.tokenize("The SEAS") == ["the", "sea", "##s"]
    cased = tokenize.load(str(word_list(tmp_path, [*WORDS, "The"])))
    assert cased.tokenize("The sea") == ["The", "sea"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be loaded"),
        ("the\nsea\n", "not found"),
        ("\n".join(word for word in WORDS if word != "[MASK]"), r"\[MASK\] not found"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_an_error(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        tokenize.load(str(path))
    assert "vocab.txt" in str(caught.value)


def test_a_directory_without_its_vocabulary_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 30522}')
    with pytest.raises(ModelError, match="hardly one that is not special"):
        tokenize.load(str(tmp_path))


def test_a_tokenizer_without_a_mask_token_is_an_error(tmp_path):
    import transformers

    backend = tokenize.load(str(word_list(tmp_path))).backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match="has no cls, sep, mask, pad, unk token"):
        tokenize.load(str(tmp_path / "saved"))
