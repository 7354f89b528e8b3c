"""Cleaning and filters: pure functions of the text."""

import pytest

from data_prep.clean import clean_text, english_fraction, letter_fraction, reason_to_drop
from kd_megatron.recipe import CleanRecipe


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﬁne  print\t①", "fine print 1"),
        (" a \r\n b\u2028c ", "a\nb\nc"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("zero\u200bwidth\ufeff\x00\x07", "zerowidth"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("cafe\u0301", "café"),
        ("no\u00a0break", "no break"),
        ("  \n \t ", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_letter_fraction_counts_every_alphabet():
    assert letter_fraction("abc 123") == 0.5
    assert letter_fraction("äöü\n123") == 0.5
    assert letter_fraction("1234") == 0.0


def test_english_fraction_tells_english_from_german():
    assert english_fraction("The ship was in the harbour and the men were on it") > 0.5
    assert english_fraction("Das Schiff lag im Hafen und die Männer waren darauf") == 0.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "dropped_too_short"),
        ("the sea", "dropped_too_short"),
        ("the sea " * 100, "dropped_too_long"),
        ("12345 67890 " * 5, "dropped_few_letters"),
        ("der Hund schläft heute " * 4, "dropped_not_english"),
        ("the dog sleeps in the sun " * 4, None),
    ],
)
def test_reason_to_drop(text, reason):
    assert reason_to_drop(text, CleanRecipe(min_characters=20, max_characters=500)) == reason


def test_filters_can_be_switched_off():
    off = CleanRecipe(min_characters=0, min_letter_fraction=0.0, min_english_fraction=0.0)
    assert reason_to_drop("1 2 3", off) is None
    assert reason_to_drop("", off) == "dropped_too_short"
