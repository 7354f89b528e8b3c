"""The shapes that are measured, by name of the set, and the smaller ones at which every backend is checked first."""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl
from kd_megatron.errors import RecipeError, nearest

KERNELS = (RelationKl.name, ScoreMse.name, VocabKl.name, VocabTopkKl.name, VocabCrossEntropy.name)
MASKED_SHARE = 0.15  # of the positions of a batch are rows of the vocabulary kernels

# For the machine of one person: minutes on two CPU cores.
SMALL: tuple[Case, ...] = (
    RelationKl(batch=16, length=128),
    RelationKl(batch=16, length=512),
    ScoreMse(batch=16, length=128),
    ScoreMse(batch=16, length=512),
    ScoreMse(batch=16, length=2048),
    VocabKl(num_rows=2400),
    VocabTopkKl(num_rows=2400),
    VocabCrossEntropy(num_rows=2400),
)
# The batches of one GPU, the most important first, as time may end; 48 relation heads are what MiniLMv2 takes for a
# teacher of width 768.
PAPER: tuple[Case, ...] = (
    VocabCrossEntropy(num_rows=round(MASKED_SHARE * 256 * 128)),
    VocabKl(num_rows=round(MASKED_SHARE * 256 * 128)),
    VocabTopkKl(num_rows=round(MASKED_SHARE * 256 * 128)),
    RelationKl(batch=256, length=128, num_relation_heads=48),
    RelationKl(batch=256, length=128),
    RelationKl(batch=64, length=512),
    RelationKl(batch=64, length=512, num_relation_heads=48),
    ScoreMse(batch=256, length=128),
    ScoreMse(batch=64, length=512),
    ScoreMse(batch=16, length=2048),
)
# For tests: the whole path in seconds.
TINY: tuple[Case, ...] = (
    RelationKl(batch=2, length=24, student_heads=(2, 16), teacher_heads=(2, 16), num_relation_heads=2),
    ScoreMse(batch=2, length=24, student_heads=(2, 16), teacher_heads=(2, 16)),
    VocabKl(num_rows=40, vocab_size=301, student_width=16, teacher_width=24),
    VocabTopkKl(num_rows=40, vocab_size=301, student_width=16, num_kept=8),
    VocabCrossEntropy(num_rows=40, vocab_size=301, student_width=16),
)
SETS: Mapping[str, tuple[Case, ...]] = {"small": SMALL, "paper": PAPER, "tiny": TINY}

# Reduced shapes with what full ones do not have: padding, holes, an empty sequence, odd lengths, unequal head sizes.
REDUCED: tuple[Case, ...] = (
    RelationKl(batch=3, length=65, student_heads=(2, 32), teacher_heads=(3, 64), num_relation_heads=2, padded=True),
    ScoreMse(batch=3, length=65, student_heads=(2, 32), teacher_heads=(2, 64), padded=True),
    VocabKl(num_rows=70, vocab_size=1009, student_width=48, teacher_width=64, holes=True),
    VocabTopkKl(num_rows=70, vocab_size=1009, student_width=48, num_kept=17, holes=True),
    VocabCrossEntropy(num_rows=70, vocab_size=1009, student_width=48, holes=True),
)


def chosen(set_name: str | None, kernel: str | None, device: torch.device) -> tuple[list[Case], list[Case]]:
    """(the cases to check, the cases to time): of a set by name or the one for ``device``, of one kernel or of all.

    Raises:
        RecipeError: no set or kernel has this name.
    """
    set_name = set_name or ("paper" if device.type == "cuda" else "small")
    _check_name("--shapes", set_name, list(SETS))
    if kernel is not None:
        _check_name("--kernel", kernel, KERNELS)
    return _of_kernel(REDUCED, kernel), _of_kernel(SETS[set_name], kernel)


def _of_kernel(cases: Sequence[Case], kernel: str | None) -> list[Case]:
    return [case for case in cases if kernel in (None, case.name)]


def _check_name(option: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise RecipeError(given=f"{option} {name}; {nearest(name, known)}", expected=f"one of {', '.join(known)}")
