"""Masks: exact number, right proportions, no special token touched, a pure function of their place."""

import math

import numpy as np
import pytest
from tolerances import MASK_SIGMAS, ORDER_CHI_SQUARED_SIGMAS

from kd_megatron.data import masking
from kd_megatron.data.special_tokens import SpecialTokens
from kd_megatron.errors import RecipeError
from kd_megatron.tensors import IGNORED

VOCAB_SIZE = 300
SPECIAL = SpecialTokens(cls_id=2, sep_id=3, mask_id=4, pad_id=0, unk_id=1, all_ids=(0, 1, 2, 3, 4, 77))
MASKER = masking.Masker.of(SPECIAL, VOCAB_SIZE)
LENGTH, COUNT = 128, 19


def windows(num: int, seed: int = 0) -> np.ndarray:
    """[num, LENGTH] random ids, special ones among them, [CLS] first and [SEP] last."""
    ids = np.random.default_rng(seed).integers(0, VOCAB_SIZE, (num, LENGTH))
    ids[:, 0], ids[:, -1] = SPECIAL.cls_id, SPECIAL.sep_id
    return ids


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return windows(2000)


@pytest.fixture(scope="module")
def masked(clean: np.ndarray) -> masking.Masked:
    return MASKER.mask(clean, np.arange(len(clean)), COUNT, seed=11)


def test_exactly_k_distinct_positions_in_ascending_order(clean: np.ndarray, masked: masking.Masked) -> None:
    assert masked.positions.shape == masked.labels.shape == (len(clean), COUNT)
    assert (np.diff(masked.positions, axis=1) > 0).all()


def test_labels_are_the_original_tokens_and_nothing_else_changes(clean: np.ndarray, masked: masking.Masked) -> None:
    assert np.array_equal(masked.labels, np.take_along_axis(clean, masked.positions, axis=1))
    restored = masked.input_ids.copy()
    np.put_along_axis(restored, masked.positions, masked.labels, axis=1)
    assert np.array_equal(restored, clean)


def test_the_input_is_left_alone(clean: np.ndarray) -> None:
    before = clean.copy()
    MASKER.mask(clean, np.arange(len(clean)), COUNT, seed=1)
    assert np.array_equal(clean, before)


def test_no_special_token_is_masked_or_drawn(masked: masking.Masked) -> None:
    put = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    assert not np.isin(masked.labels, SPECIAL.all_ids).any()
    assert not np.isin(put[put != SPECIAL.mask_id], SPECIAL.all_ids).any()


def test_eighty_ten_ten(masked: masking.Masked) -> None:
    put = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    total, num_drawable = put.size, VOCAB_SIZE - len(SPECIAL.all_ids)
    shares = {"mask": 0.8, "kept": 0.1 + 0.1 / num_drawable}  # a random draw may hit the token itself
    counts = {"mask": (put == SPECIAL.mask_id).sum(), "kept": (put == masked.labels).sum()}
    for name, share in shares.items():
        assert abs(counts[name] - total * share) < MASK_SIGMAS * math.sqrt(total * share * (1 - share)), name


def test_replacements_are_uniform_over_the_tokens_that_are_not_special(masked: masking.Masked) -> None:
    put = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    drawn = put[(put != SPECIAL.mask_id) & (put != masked.labels)]
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)[MASKER.replacements]
    assert chi_squared_sigmas(counts) < ORDER_CHI_SQUARED_SIGMAS


def chi_squared_sigmas(counts: np.ndarray) -> float:
    freedom = counts.size - 1
    return (((counts - counts.mean()) ** 2 / counts.mean()).sum() - freedom) / math.sqrt(2 * freedom)


def test_positions_are_uniform_and_independent_of_their_neighbours() -> None:
    ids = np.full((4000, LENGTH), 50)
    ids[:, 0], ids[:, -1] = SPECIAL.cls_id, SPECIAL.sep_id
    positions = MASKER.mask(ids, np.arange(4000), COUNT, seed=3).positions
    chosen = np.zeros(ids.shape, bool)
    np.put_along_axis(chosen, positions, True, axis=1)
    inner = chosen[:, 1:-1]
    assert chi_squared_sigmas(inner.sum(axis=0)) < ORDER_CHI_SQUARED_SIGMAS
    num_pairs, places = inner[:, 1:].size, LENGTH - 2
    both = (inner[:, 1:] & inner[:, :-1]).sum()
    expected = COUNT / places * (COUNT - 1) / (places - 1)  # without replacement
    assert abs(both - num_pairs * expected) < MASK_SIGMAS * math.sqrt(num_pairs * expected)


def test_what_a_masked_token_becomes_does_not_depend_on_which_were_chosen(
    clean: np.ndarray, masked: masking.Masked
) -> None:
    put = np.take_along_axis(masked.input_ids, masked.positions, axis=1)
    is_mask = put == SPECIAL.mask_id
    for half in (is_mask[:, : COUNT // 2], is_mask[:, COUNT // 2 :], is_mask[::2], is_mask[1::2]):
        assert abs(half.sum() - 0.8 * half.size) < MASK_SIGMAS * math.sqrt(half.size * 0.16)


def test_a_row_depends_on_its_own_sample_alone(clean: np.ndarray, masked: masking.Masked) -> None:
    rows = np.array([1999, 4, 700])
    alone = MASKER.mask(clean[rows], rows, COUNT, seed=11)
    for name in ("input_ids", "positions", "labels"):
        assert np.array_equal(getattr(alone, name), getattr(masked, name)[rows])


def test_another_seed_or_sample_index_masks_anew(clean: np.ndarray, masked: masking.Masked) -> None:
    samples = np.arange(len(clean))
    for other in (MASKER.mask(clean, samples, COUNT, seed=12), MASKER.mask(clean, samples + 2000, COUNT, seed=11)):
        assert (other.positions != masked.positions).any(axis=1).all()
    for seed in (-5, 2**64 + 3, 0):
        MASKER.mask(clean[:1], samples[:1], COUNT, seed)


def test_masks_are_these_masks_for_ever() -> None:
    """Pins the rule itself: a change of it changes every run, and must be a decision (loader._ORDER_VERSION)."""
    ids = np.array([[2, *range(100, 114), 3]] * 2)
    pinned = MASKER.mask(ids, np.array([0, 12345]), 9, seed=42)
    assert pinned.positions.tolist() == PINNED_POSITIONS
    treated = np.take_along_axis(pinned.input_ids, pinned.positions, axis=1)
    assert treated.tolist() == PINNED_TREATED


PINNED_POSITIONS = [[1, 2, 3, 4, 7, 9, 10, 12, 14], [2, 3, 4, 5, 6, 8, 10, 12, 14]]
PINNED_TREATED = [[4] * 9, [4, 4, 43, 4, 4, 4, 88, 4, 4]]


def test_unused_slots_come_last_and_are_ignored() -> None:
    ids = np.full((3, LENGTH), SPECIAL.sep_id)
    ids[:, 0] = SPECIAL.cls_id
    ids[1, [5, 90]] = 50
    ids[2, 1 : 1 + COUNT] = 60
    masked = MASKER.mask(ids, np.arange(3), COUNT, seed=1)
    assert masked.labels[0].tolist() == [IGNORED] * COUNT
    assert masked.labels[1].tolist() == [50, 50] + [IGNORED] * (COUNT - 2)
    assert masked.positions[1].tolist() == [5, 90] + [0] * (COUNT - 2)
    assert masked.positions[2].tolist() == list(range(1, 1 + COUNT))
    assert np.array_equal(masked.input_ids[0], ids[0])
    assert (masked.input_ids[:, 0] == SPECIAL.cls_id).all()


def test_number_of_masked_tokens() -> None:
    assert masking.num_masked(0.15, 128) == 19
    with pytest.raises(RecipeError, match="mask_fraction"):
        masking.num_masked(0.01, 16)
