"""The tokenizer: load one or train a WordPiece vocabulary. Whatever the source, ids are stable.

Both return a `transformers` tokenizer, in the parent process; workers encode with `encode`.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from kd_megatron.errors import ModelError
from kd_megatron.recipe import TrainTokenizerRecipe

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET_LIMIT = 1000  # characters; the rarer ones become [UNK], as in BERT's own vocabulary
_MIN_PAIR_COUNT = 2
_ROLES = ("cls", "sep", "mask", "pad", "unk")
_FEWEST_WORDS = 5  # beside special tokens: without its vocabulary's file, a directory gives a tokenizer with none


def load(name: str) -> Any:
    """The fast tokenizer at a local directory, a ``vocab.txt`` (BERT WordPiece) or a hub id; no remote code.

    Raises:
        ModelError: it cannot be loaded, is not a fast one, lacks a special token, or knows no words.
    """
    import transformers

    path = Path(name)
    try:
        if path.is_file():
            tokenizer = _from_word_list(path)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, tokenizers' bare Exception, ...
        raise ModelError(
            given=f"tokenizer {name} cannot be loaded: {type(error).__name__}: {error}",
            expected="a directory with tokenizer.json, a vocab.txt, or the id of a tokenizer on the hub",
            fix="check 'tokenizer.load' (and, for a hub id, that this machine reaches huggingface.co)",
        ) from error
    missing = [kind for kind in _ROLES if getattr(tokenizer, f"{kind}_token_id") is None]
    if missing or not tokenizer.is_fast:
        raise ModelError(
            given=f"tokenizer {name} " + (f"has no {', '.join(missing)} token" if missing else "is not a fast one"),
            expected="a fast tokenizer of a masked-language model (BERT, RoBERTa, ...)",
            fix="choose another in 'tokenizer.load'",
        )
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < _FEWEST_WORDS:
        raise ModelError(
            given=f"tokenizer {name} knows {len(tokenizer)} tokens and hardly one that is not special",
            expected="a vocabulary beside its configuration: tokenizer.json, vocab.txt, or a sentencepiece model",
            fix="complete the directory, or choose another in 'tokenizer.load'",
        )
    return tokenizer


def train(texts: Iterable[str], recipe: TrainTokenizerRecipe, scratch: Path) -> Any:
    """A BERT tokenizer with a WordPiece vocabulary trained on ``texts``: the same texts give the same ids.

    The library's trainer breaks ties by the order in which its hash maps happen to list characters. Naming the
    alphabet in sorted order, continuations ("##x") included, fixes every id before the first merge.

    Args:
        texts: read once.
        recipe: size and case.
        scratch: a file to write the normalised text to (the trainer reads it from there, not from memory).
    """
    normalizer = normalizers.BertNormalizer(lowercase=recipe.lowercase)
    counts: Counter[str] = Counter()
    with scratch.open("w", encoding="utf-8") as file:
        for text in texts:
            normalized = normalizer.normalize_str(text)
            counts.update(normalized)
            file.write(normalized + "\n")
    ranked = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(ranked[: min(_ALPHABET_LIMIT, recipe.vocab_size // 4)])  # each takes two ids
    trainer = trainers.WordPieceTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train([str(scratch)], trainer)
    scratch.unlink()
    return _bert_tokenizer(trained.get_vocab(), recipe.lowercase)


def _from_word_list(path: Path) -> Any:
    """BERT's ``vocab.txt``: one token a line; cased exactly when a token has a capital letter."""
    vocabulary = {word: index for index, word in enumerate(path.read_text(encoding="utf-8").splitlines())}
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(f"a BERT word list has one token a line; {', '.join(missing)} not found")
    is_cased = any(word != word.lower() for word in vocabulary.keys() - set(SPECIAL_TOKENS))
    return _bert_tokenizer(vocabulary, lowercase=not is_cased)


def _bert_tokenizer(vocabulary: dict[str, int], lowercase: bool) -> Any:
    import transformers

    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=512)
