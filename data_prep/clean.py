"""Cleaning: what happens to a document's text, and which documents are kept. Pure functions of the text.

The filters are cheap and blunt on purpose: they catch tables, code dumps, foreign languages and stubs, and the
manifest counts what each one dropped.
"""

import re
import string
import unicodedata

from kd_megatron.recipe import CleanRecipe

# Control characters other than tab and line ends, zero-width characters, lone surrogates, byte-order and
# replacement marks.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ud800-\udfff\ufeff\ufffd]"
)
_BLANK_LINES = re.compile(r"\n{3,}")
_ASCII = re.compile(r"[\x00-\x7f]+")
_ASCII_LETTERS = string.ascii_letters.encode()

_WORDS = """
the of and to in a is that for it as was with be by on not he i this are or his from at which but have an had
they you were their one all we can her has there been if more when will would who so no out up into than them
she some about other only time could these two may then do any my now such like our over me even most made after
also did many before must through your where much should well how because each between under while us its what
"""
COMMON_ENGLISH_WORDS = frozenset(_WORDS.split())


def clean_text(text: str) -> str:
    """``text`` in NFKC, without invisible characters, with single spaces and at most one blank line in a row."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def reason_to_drop(text: str, recipe: CleanRecipe) -> str | None:
    """Why the cleaned ``text`` is not kept (the name of the manifest's count), or None when it is."""
    if len(text) < recipe.min_characters or not text:
        return "dropped_too_short"
    if len(text) > recipe.max_characters:
        return "dropped_too_long"
    if letter_fraction(text) < recipe.min_letter_fraction:
        return "dropped_few_letters"
    if english_fraction(text) < recipe.min_english_fraction:
        return "dropped_not_english"
    return None


def letter_fraction(text: str) -> float:
    """Letters of any alphabet among the characters of a cleaned text that are not white space."""
    num_visible = len(text) - text.count(" ") - text.count("\n")
    encoded = text.encode("utf-8", errors="ignore")
    num_ascii_letters = len(encoded) - len(encoded.translate(None, _ASCII_LETTERS))
    num_other_letters = sum(map(str.isalpha, _ASCII.sub("", text)))
    return (num_ascii_letters + num_other_letters) / max(num_visible, 1)


def english_fraction(text: str) -> float:
    """How many of the words are among the commonest English ones: about 0.4 in prose, near 0 in other languages."""
    words = text.lower().split()
    return sum(map(COMMON_ENGLISH_WORDS.__contains__, words)) / max(len(words), 1)
