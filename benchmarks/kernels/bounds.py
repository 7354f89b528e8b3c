"""The least time a GPU needs for a case: its matrix products, exponentials and bytes at the rates of the data sheet.

Each count is of one forward and backward that stores nothing of the size of a relation or of logits; what is recomputed
for that counts. The three overlap in the ideal, so the largest is the bound.

Shapes: B batch, L length, R relation heads, H heads, d head size, N rows, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

from benchmarks.kernels.attention_cases import HiddenMse, RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.vocab_cases import VocabCrossEntropy, VocabKl, VocabTopkKl
from kd_megatron.kernels.relation_kl import LARGEST_WHOLE_HEAD, LONGEST_WHOLE
from kd_megatron.machine.gpus import GPUS


@dataclass(frozen=True)
class Rates:
    """What a GPU does in a second."""

    name: str
    bf16_flops: float
    exponentials: float
    bytes: float


# 132 multiprocessors at 1.83 GHz. Matrix products and memory: kd_megatron/machine/gpus.py. Exponentials: 16 results
# per clock and multiprocessor (CUDA C++ programming guide, arithmetic throughput, compute capability 9.0).
H200 = Rates(
    "H200",
    bf16_flops=GPUS["h200"].half_flops,
    exponentials=132 * 16 * 1.83e9,
    bytes=GPUS["h200"].bytes_per_second,
)


@dataclass(frozen=True)
class Cost:
    """What one forward and backward takes."""

    flops: float  # of matrix products
    exponentials: float
    bytes: float  # inputs read, gradients written

    def seconds(self, rates: Rates) -> tuple[float, str]:
        """(the bound, what sets it)."""
        times = {
            "matrix products": self.flops / rates.bf16_flops,
            "exponentials": self.exponentials / rates.exponentials,
            "bytes": self.bytes / rates.bytes,
        }
        limit = max(times, key=times.__getitem__)
        return times[limit], limit


def cost(case: Case, bytes_per_number: int = 2) -> Cost:
    """The cost of ``case``."""
    if isinstance(case, RelationKl):
        return _relation_kl(case, bytes_per_number)
    if isinstance(case, ScoreMse):
        return _score_mse(case, bytes_per_number)
    if isinstance(case, HiddenMse):
        return _hidden_mse(case, bytes_per_number)
    if isinstance(case, VocabCrossEntropy):
        return _vocabulary(case, bytes_per_number)
    raise TypeError(f"no cost is known of {type(case).__name__}")


def _relation_kl(case: RelationKl, bytes_per_number: int) -> Cost:
    """Of short sequences two scores an entry, two products with X and 2 exponentials, all at once.

    Of others two scores in the forward, both again and the product with X in the backward; 2 and 4 exponentials. Taps
    are read by both passes, as both need all of them.
    """
    student_width, teacher_width = (heads * size for heads, size in (case.student_heads, case.teacher_heads))
    student_size, teacher_size = (width // case.num_relation_heads for width in (student_width, teacher_width))
    entries = case.num_relations * case.batch * case.num_relation_heads * case.length**2
    tap_numbers = case.num_relations * case.batch * case.length
    is_short = case.length <= LONGEST_WHOLE and max(student_size, teacher_size) <= LARGEST_WHOLE_HEAD
    if is_short and bytes_per_number == 2:
        return Cost(
            flops=entries * 2.0 * (student_size + teacher_size + 2 * student_size),
            exponentials=2.0 * entries,
            bytes=float(bytes_per_number * tap_numbers * (student_width + teacher_width + student_width)),
        )
    return Cost(
        flops=entries * 2.0 * (2 * (student_size + teacher_size) + student_size),
        exponentials=6.0 * entries,
        bytes=float(bytes_per_number * tap_numbers * (2 * (student_width + teacher_width) + student_width)),
    )


def _score_mse(case: ScoreMse, bytes_per_number: int) -> Cost:
    """Whichever is less: tiles (both scores and two gradients of each entry), or Grams of [Q_s, Q_t] and [K_s, K_t]."""
    (num_heads, student_size), (_, teacher_size) = case.student_heads, case.teacher_heads
    both = student_size + teacher_size
    tiles = 2.0 * case.length**2 * (both + 2 * student_size)
    grams = 4.0 * case.length * both * (both + student_size)
    numbers = case.batch * num_heads * case.length * (2 * both + 2 * student_size)
    return Cost(case.batch * num_heads * min(tiles, grams), 0.0, float(bytes_per_number * numbers))


def _hidden_mse(case: HiddenMse, bytes_per_number: int) -> Cost:
    """Both states by the forward and by the backward, and the gradient: no product, no exponential."""
    return Cost(0.0, 0.0, 5.0 * bytes_per_number * case.num_tokens * case.width)


def _vocabulary(case: VocabCrossEntropy, bytes_per_number: int) -> Cost:
    """Logits once, their gradient to states and to weights; the teacher's logits once. One softmax, two, or three."""
    logits = float(case.num_rows * case.vocab_size)
    teacher_width = case.teacher_width if isinstance(case, VocabKl) else 0
    num_softmaxes = 3 if teacher_width else 2 if isinstance(case, VocabTopkKl) else 1
    numbers = (case.num_rows + case.vocab_size) * (2 * case.student_width + teacher_width)
    return Cost(
        flops=2 * logits * (3 * case.student_width + teacher_width),
        exponentials=logits * num_softmaxes,
        bytes=float(bytes_per_number * numbers),
    )
