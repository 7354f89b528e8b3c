"""Dynamic masks for masked-language modelling, 80/10/10 (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

A mask is a pure function of (seed, sample, position, token ids), and never depends on the micro-batch or rank. By
default the sample is its position in the run's data order, so that the same window is masked anew in each epoch; with
the recipe's ``mask_seed`` it is the window, which then keeps one mask.

EXACTLY K positions of each sequence are masked, not each with probability 15 %: shapes never change, so a step costs
the same FLOPs and the same memory every time, and every arm has the same number of targets.

Legend: B batch, L length, K masked slots per sequence.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kd_megatron.data import counter_hash
from kd_megatron.data.special_tokens import SpecialTokens
from kd_megatron.errors import RecipeError
from kd_megatron.tensors import IGNORED

Index = NDArray[np.int64]

_POSITION_MASK = np.uint64(0xFFFF)  # of a selection key; the 48 bits above are random
_NEVER = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_EIGHTY_PERCENT, _NINETY_PERCENT = (np.uint64(round(fraction * 2**64)) for fraction in (0.8, 0.9))
_SELECTION, _TREATMENT, _REPLACEMENT = 1, 2, 3  # independent streams of one seed


def num_masked(mask_fraction: float, sequence_length: int) -> int:
    """K for windows of ``sequence_length`` tokens of which all but [CLS] and [SEP] may be masked."""
    count = round(mask_fraction * (sequence_length - 2))
    if count < 1:
        raise RecipeError(
            given=f"data.mask_fraction={mask_fraction} of {sequence_length - 2} tokens masks none of them",
            expected="at least one masked token in each sequence",
            fix="raise data.mask_fraction or data.sequence_length",
        )
    return count


@dataclass(frozen=True)
class Masked:
    """What masking returns, beside the untouched input."""

    input_ids: Index  # [B, L]
    positions: Index  # [B, K], ascending; 0 in unused slots, which come last
    labels: Index  # [B, K], the original ids; IGNORED in unused slots


@dataclass(frozen=True)
class Masker:
    """The masking rule of one tokenizer.

    No special token ([CLS], [SEP], [PAD], [MASK], [UNK] and any other the tokenizer calls special) is ever masked, and
    none is drawn as a random replacement. [UNK] is among them because "unknown" is not a word to be predicted.
    """

    mask_id: int
    is_special: NDArray[np.bool_]  # [vocabulary]
    replacements: Index  # the ids that are not special

    @classmethod
    def of(cls, special: SpecialTokens, vocab_size: int) -> Self:
        """The rule for a vocabulary of ``vocab_size`` ids with these special tokens."""
        is_special = np.zeros(vocab_size, np.bool_)
        is_special[list(special.all_ids)] = True
        return cls(special.mask_id, is_special, np.flatnonzero(~is_special))

    def mask(self, clean_ids: Index, sample_ids: Index, count: int, seed: int) -> Masked:
        """Mask ``count`` tokens of each row.

        Args:
            clean_ids: [B, L], L at most 65,536.
            sample_ids: [B], what a row's mask hangs on: its position in the data order, or its window.
            count: K.
            seed: of the run, or of the fixed masks.
        """
        positions = self._select(clean_ids, sample_ids, count, seed)  # [B, K]
        used = positions < clean_ids.shape[1]
        positions = np.where(used, positions, 0)
        originals = np.take_along_axis(clean_ids, positions, axis=1)
        treated = self._treat(originals, _bits(seed, _TREATMENT, sample_ids, positions), sample_ids, positions, seed)
        rows, slots = np.nonzero(used)
        input_ids = clean_ids.copy()
        input_ids[rows, positions[rows, slots]] = treated[rows, slots]
        return Masked(input_ids, positions, np.where(used, originals, IGNORED))

    def _select(self, clean_ids: Index, sample_ids: Index, count: int, seed: int) -> Index:
        """[B, K] ascending positions of the ``count`` eligible tokens with the smallest hash; L or more if unused."""
        length = clean_ids.shape[1]
        places = np.arange(length, dtype=np.int64)[None, :]
        # The position in the low bits breaks ties, so the choice does not depend on how a sort treats them.
        keys = _bits(seed, _SELECTION, sample_ids, places) & ~_POSITION_MASK | places.astype(np.uint64)
        keys[self.is_special[clean_ids]] = _NEVER
        keys.partition(count - 1, axis=1)
        chosen = keys[:, :count]
        positions = (chosen & _POSITION_MASK).astype(np.int64)
        positions[chosen == _NEVER] = length
        positions.sort(axis=1)
        return positions

    def _treat(
        self, originals: Index, bits: counter_hash.Bits, sample_ids: Index, positions: Index, seed: int
    ) -> Index:
        """[B, K] what stands at each masked position: [MASK], a random token, or the token itself."""
        draws = counter_hash.below(_bits(seed, _REPLACEMENT, sample_ids, positions), self.replacements.size)
        kept_or_drawn = np.where(bits < _NINETY_PERCENT, self.replacements[draws], originals)
        return np.where(bits < _EIGHTY_PERCENT, self.mask_id, kept_or_drawn)


def _bits(seed: int, stream: int, sample_ids: Index, positions: Index) -> counter_hash.Bits:
    """[B, n] random bits of a stream at ``positions`` ([B, n] or [1, n]) of each sample."""
    row_keys = counter_hash.random_bits(counter_hash.key(seed, stream), sample_ids)
    return counter_hash.random_bits(row_keys[:, None], positions)
