"""The shapes at which a new device is trusted: every backend against float64, few enough for nine minutes.

Padding holds NaN, sequences have holes or nothing at all, heads differ in size between the models, scores come near
70 and -70.
"""

from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl

WIDE = (2, 64)  # two heads of the usual size

# In nine minutes each compiled form of a kernel counts, one for every head size, type and kind of mask: these have what
# a device may do otherwise than the interpreter, in which the tests try lengths from 1 to 512.
THOROUGH: tuple[Case, ...] = (
    VocabKl(num_rows=600, vocab_size=5003, student_width=48, teacher_width=80, holes=True),
    VocabKl(num_rows=300),
    VocabTopkKl(num_rows=600, vocab_size=5003, student_width=48, holes=True),
    VocabTopkKl(num_rows=300),
    VocabCrossEntropy(num_rows=600, vocab_size=5003, student_width=48, holes=True),
    VocabCrossEntropy(num_rows=300),
    RelationKl(2, 128, WIDE, WIDE, num_relation_heads=8, padded=True),  # relation heads of 16, as 48 of width 768
    RelationKl(2, 128, WIDE, WIDE, num_relation_heads=2),
    RelationKl(3, 127, WIDE, WIDE, num_relation_heads=2, padded=True, fused=True),
    RelationKl(2, 200, WIDE, WIDE, num_relation_heads=2, opposed=True),
    ScoreMse(2, 128, WIDE, WIDE),
    ScoreMse(3, 200, WIDE, WIDE, padded=True),
    ScoreMse(3, 130, (2, 26), (2, 64), padded=True),
)

BRIEF: tuple[Case, ...] = (
    RelationKl(1, 1, (1, 16), (1, 16), num_relation_heads=1, num_relations=1),
    RelationKl(3, 17, (2, 8), (1, 32), num_relation_heads=2, num_relations=2, padded=True),
    ScoreMse(3, 17, (2, 8), (2, 16), padded=True),
    VocabKl(num_rows=20, vocab_size=101, student_width=16, teacher_width=24, holes=True),
    VocabTopkKl(num_rows=20, vocab_size=101, student_width=16, num_kept=5, holes=True),
    VocabCrossEntropy(num_rows=20, vocab_size=101, student_width=16, holes=True),
)
