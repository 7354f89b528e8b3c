"""The shapes at which a new device is trusted: every backend against float64, from one position to 512.

Each of them is a variant that Triton compiles, forward and backward, in two dtypes, at some seconds each: so none that
another one covers. Those of the recipes come first.

Padding holds NaN, sequences have holes or nothing at all, heads differ in size between the models, scores come near
70 and -70.
"""

from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl

WIDE = (2, 64)  # two heads of the usual size
OF_THE_RECIPES = (12, 64)  # heads of a model of width 768

THOROUGH: tuple[Case, ...] = (
    VocabKl(num_rows=300),
    VocabKl(num_rows=1, vocab_size=997, student_width=64, teacher_width=64),
    VocabKl(num_rows=600, vocab_size=5003, student_width=48, teacher_width=80, holes=True),
    VocabTopkKl(num_rows=300),
    VocabTopkKl(num_rows=1, vocab_size=997, student_width=64, num_kept=1),
    VocabTopkKl(num_rows=600, vocab_size=5003, student_width=48, holes=True),
    VocabTopkKl(num_rows=100, vocab_size=499, student_width=48, num_kept=498, temperature=1.0),
    VocabCrossEntropy(num_rows=300),
    VocabCrossEntropy(num_rows=1, vocab_size=997, student_width=64),
    VocabCrossEntropy(num_rows=600, vocab_size=5003, student_width=48, holes=True),
    RelationKl(2, 128, OF_THE_RECIPES, OF_THE_RECIPES, num_relation_heads=48),  # relation heads of 16
    RelationKl(2, 1, WIDE, WIDE, num_relation_heads=2),
    RelationKl(2, 512, WIDE, WIDE, num_relation_heads=2),
    RelationKl(3, 200, WIDE, WIDE, num_relation_heads=2, padded=True),
    RelationKl(3, 127, WIDE, WIDE, num_relation_heads=2, padded=True, fused=True),
    RelationKl(3, 130, (2, 26), (2, 64), num_relation_heads=2, num_relations=2, padded=True),
    RelationKl(2, 130, (2, 32), (2, 16), num_relation_heads=2, num_relations=1),
    RelationKl(2, 33, WIDE, WIDE, num_relation_heads=8, padded=True),  # of 16, with padding
    RelationKl(2, 128, WIDE, WIDE, num_relation_heads=1),  # of 128
    RelationKl(2, 200, WIDE, WIDE, num_relation_heads=2, opposed=True),
    *(ScoreMse(2, length, WIDE, WIDE) for length in (1, 128, 512)),
    ScoreMse(3, 200, WIDE, WIDE, padded=True),
    ScoreMse(3, 130, (2, 26), (2, 64), padded=True),
    ScoreMse(2, 130, (3, 16), (3, 32)),
)

BRIEF: tuple[Case, ...] = (
    RelationKl(1, 1, (1, 16), (1, 16), num_relation_heads=1, num_relations=1),
    RelationKl(3, 17, (2, 8), (1, 32), num_relation_heads=2, num_relations=2, padded=True),
    ScoreMse(3, 17, (2, 8), (2, 16), padded=True),
    VocabKl(num_rows=20, vocab_size=101, student_width=16, teacher_width=24, holes=True),
    VocabTopkKl(num_rows=20, vocab_size=101, student_width=16, num_kept=5, holes=True),
    VocabCrossEntropy(num_rows=20, vocab_size=101, student_width=16, holes=True),
)
