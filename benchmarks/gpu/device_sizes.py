"""What `device_check` covers on a GPU, and the same parts small, for a dry run on a CPU in Triton's interpreter."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.kernels import examples, shapes
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.triton_tuning import Choices


@dataclass(frozen=True)
class Sizes:
    """The cases of each part."""

    device: torch.device
    compiler: str
    checked: Sequence[Case]
    timed: Sequence[Case]
    seconds_per_case: float
    long: Sequence[tuple[Case, Case]]  # of one kernel: half the length, the whole
    long_checked: Sequence[Case]  # the whole length with one head, as float64 stores L x L
    tuned: Sequence[Case]
    choices: Choices


ONE_HEAD = (1, 64)
# What the targets of docs/performance.md hang on, before all else: the vocabulary side, and 48 relation heads of 16.
OF_THE_RECIPES: tuple[Case, ...] = (
    *(case for case in shapes.PAPER if not isinstance(case, RelationKl | ScoreMse)),
    RelationKl(batch=256, length=128, num_relation_heads=48),
)
GPU = Sizes(
    device=torch.device("cuda"),
    compiler="inductor",
    checked=examples.THOROUGH,
    timed=[*OF_THE_RECIPES, *(case for case in shapes.PAPER if case not in OF_THE_RECIPES)],
    seconds_per_case=3.0,
    long=[(RelationKl(4, 4096), RelationKl(4, 8192)), (ScoreMse(4, 4096), ScoreMse(4, 8192))],
    long_checked=[
        RelationKl(1, 8192, ONE_HEAD, ONE_HEAD, num_relation_heads=1, num_relations=1),
        ScoreMse(1, 8192, ONE_HEAD, ONE_HEAD),
    ],
    tuned=[case for case in (*OF_THE_RECIPES, *shapes.PAPER) if isinstance(case, RelationKl | ScoreMse)],
    choices=Choices(),
)

SMALL_HEAD = (1, 16)  # the interpreter takes a tenth of a second for a tile
DRY_RUN_TUNED: tuple[Case, ...] = (
    RelationKl(1, 20, SMALL_HEAD, SMALL_HEAD, num_relation_heads=1, num_relations=1),
    ScoreMse(1, 20, SMALL_HEAD, SMALL_HEAD),
)
DRY_RUN = Sizes(
    device=torch.device("cpu"),
    compiler="aot_eager",  # which needs no C++ compiler
    checked=examples.BRIEF,
    timed=[*DRY_RUN_TUNED, *shapes.TINY[2:]],
    seconds_per_case=0.0,
    long=[(ScoreMse(1, 64, SMALL_HEAD, SMALL_HEAD), ScoreMse(1, 128, SMALL_HEAD, SMALL_HEAD))],
    long_checked=[ScoreMse(1, 128, SMALL_HEAD, SMALL_HEAD)],
    tuned=DRY_RUN_TUNED,
    choices=Choices(tiles=((32, 16),), num_warps=(4,), num_stages=(2,)),
)
