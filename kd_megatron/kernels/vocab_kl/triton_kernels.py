"""The vocabulary losses in Triton, from rows of logits to their losses and, where wanted, the gradient of the logits.

Shapes: C rows of a chunk, V vocabulary, P = V and a gap: the elements from a row to the next; k tokens known.

One program owns one row and goes through its tokens twice, a tile at a time: for the statistics, then for the gradient.
The second time the row comes from a cache, as the programs at work hold few rows. Sums are kept token by token of a
tile and added up at the end, so that a tile costs one reduction, that of the maximum, and no exponential twice.

Logits are without the bias: it is added as they are read. A gap is read and written, so that all accesses are of whole
vectors, and counts as `LOWEST_SCORE`, whatever it holds. Exponents are ``(z - maximum) * log2(e) / T``: the difference
first, because ``z * log2(e)`` of a large logit has lost the digits that its exponential needs.
"""

import triton
import triton.language as tl

from kd_megatron.kernels.triton_tools import LOG2_E, LOWEST_SCORE
from kd_megatron.tensors import IGNORED

NO_LABEL = tl.constexpr(IGNORED)


@triton.jit
def cross_entropy_rows(  # type: ignore[no-untyped-def]
    student,  # [C, P] logits
    student_bias,  # [P], or None
    labels,  # [C] int64, or `IGNORED`
    cross_entropies,  # [C], written: 0 without a label
    gradient,  # [C, P], written; None: not wanted; ``student`` itself: in its place
    row_size,  # P
    vocab_size,
    cross_entropy_weight,  # b
    TILE: tl.constexpr,
):
    """Grid: (C). ``-log p[label]``, and ``b * (p - one_hot(label))``."""
    accumulated: tl.constexpr = student.dtype.element_ty  # float32, or float64
    student += row_start(row_size)
    label, is_labelled = label_of_row(labels)
    label_logit = logit_of(student, student_bias, label)
    maximum = tl.full([], LOWEST_SCORE, accumulated)
    sums = tl.zeros([TILE], accumulated)
    for start in range(0, vocab_size, TILE):
        logits, _ = load_tile(student, student_bias, start, row_size, vocab_size, "evict_last", TILE)
        next_maximum = tl.maximum(maximum, tl.max(logits, 0))
        sums = sums * tl.exp2((maximum - next_maximum) * LOG2_E) + tl.exp2((logits - next_maximum) * LOG2_E)
        maximum = next_maximum
    total = tl.sum(sums, 0)
    cross_entropy = tl.log(total) - (label_logit - maximum)
    tl.store(cross_entropies + tl.program_id(0), tl.where(is_labelled, cross_entropy, 0.0))

    if gradient is not None:
        weight = weight_where(is_labelled, cross_entropy_weight, accumulated)
        factor = weight / total
        tl.debug_barrier()  # every warp has read the label's logit before another overwrites it
        for start in range(0, vocab_size, TILE):
            logits, tokens = load_tile(student, student_bias, start, row_size, vocab_size, "evict_first", TILE)
            values = tl.exp2((logits - maximum) * LOG2_E) * factor
            store_tile(gradient, values, tokens, label, weight, row_size)


@triton.jit
def divergence_rows(  # type: ignore[no-untyped-def]
    student,  # [C, P] logits
    student_bias,  # [P], or None
    teacher,  # [C, P] logits
    teacher_bias,  # [P], or None
    labels,  # [C] int64, or `IGNORED`
    kl_rows,  # [C] bool: the rows of the divergence
    divergences,  # [C], written: 0 in other rows
    cross_entropies,  # [C], written: 0 without a label
    gradient,  # [C, P], written; None: not wanted; ``student`` itself: in its place
    row_size,  # P
    vocab_size,
    divergence_weight,  # a / T
    cross_entropy_weight,  # b
    INVERSE_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid: (C). Both losses of a row, and ``b * (p_s - one_hot(label)) + (a / T) * (p_s^T - p_t^T)``.

    The divergence is the mean, under the teacher, of differences of logits that are relative to their own maxima. When
    a later tile moves the maxima, the sum so far is rescaled and shifted.
    """
    accumulated: tl.constexpr = student.dtype.element_ty
    tempered_scale: tl.constexpr = LOG2_E * INVERSE_TEMPERATURE
    is_tempered: tl.constexpr = INVERSE_TEMPERATURE != 1.0
    student += row_start(row_size)
    teacher += row_start(row_size)
    label, is_labelled = label_of_row(labels)
    label_logit = logit_of(student, student_bias, label)
    student_max = tl.full([], LOWEST_SCORE, accumulated)
    teacher_max = tl.full([], LOWEST_SCORE, accumulated)
    student_sums = tl.zeros([TILE], accumulated)
    tempered_sums = tl.zeros([TILE], accumulated)
    teacher_sums = tl.zeros([TILE], accumulated)
    weighted = tl.zeros([TILE], accumulated)  # sums of e_t (z_t - z_s)
    for start in range(0, vocab_size, TILE):
        student_logits, _ = load_tile(student, student_bias, start, row_size, vocab_size, "evict_last", TILE)
        teacher_logits, _ = load_tile(teacher, teacher_bias, start, row_size, vocab_size, "evict_last", TILE)
        next_student_max = tl.maximum(student_max, tl.max(student_logits, 0))
        next_teacher_max = tl.maximum(teacher_max, tl.max(teacher_logits, 0))
        student_logits -= next_student_max
        teacher_logits -= next_teacher_max
        student_move = student_max - next_student_max  # negative where the maximum has moved
        teacher_move = teacher_max - next_teacher_max
        teacher_decay = tl.exp2(teacher_move * tempered_scale)
        weights = tl.exp2(teacher_logits * tempered_scale)
        weighted = teacher_decay * (weighted + teacher_sums * (teacher_move - student_move))
        weighted += weights * (teacher_logits - student_logits)
        teacher_sums = teacher_sums * teacher_decay + weights
        student_sums = student_sums * tl.exp2(student_move * LOG2_E) + tl.exp2(student_logits * LOG2_E)
        if is_tempered:
            decay = tl.exp2(student_move * tempered_scale)
            tempered_sums = tempered_sums * decay + tl.exp2(student_logits * tempered_scale)
        student_max = next_student_max
        teacher_max = next_teacher_max
    student_total = tl.sum(student_sums, 0)
    teacher_total = tl.sum(teacher_sums, 0)
    tempered_total = tl.sum(tempered_sums, 0) if is_tempered else student_total
    mean_difference = tl.sum(weighted, 0) * INVERSE_TEMPERATURE / teacher_total
    divergence = mean_difference + tl.log(tempered_total) - tl.log(teacher_total)
    cross_entropy = tl.log(student_total) - (label_logit - student_max)
    is_compared = tl.load(kl_rows + tl.program_id(0))
    tl.store(divergences + tl.program_id(0), tl.where(is_compared, divergence, 0.0))
    tl.store(cross_entropies + tl.program_id(0), tl.where(is_labelled, cross_entropy, 0.0))

    if gradient is not None:
        label_weight = weight_where(is_labelled, cross_entropy_weight, accumulated)
        kl_weight = weight_where(is_compared, divergence_weight, accumulated)
        weight = label_weight if is_tempered else label_weight + kl_weight
        student_factor = weight / student_total
        tempered_factor = kl_weight / tempered_total
        teacher_factor = kl_weight / teacher_total
        tl.debug_barrier()  # every warp has read the label's logit before another overwrites it
        for start in range(0, vocab_size, TILE):
            student_logits, tokens = load_tile(student, student_bias, start, row_size, vocab_size, "evict_first", TILE)
            teacher_logits, _ = load_tile(teacher, teacher_bias, start, row_size, vocab_size, "evict_first", TILE)
            student_logits -= student_max
            values = tl.exp2(student_logits * LOG2_E) * student_factor
            if is_tempered:
                values += tl.exp2(student_logits * tempered_scale) * tempered_factor
            values -= tl.exp2((teacher_logits - teacher_max) * tempered_scale) * teacher_factor
            store_tile(gradient, values, tokens, label, label_weight, row_size)


@triton.jit
def top_divergence_rows(  # type: ignore[no-untyped-def]
    student,  # [C, P] logits; those of the known tokens are overwritten
    student_bias,  # [P], or None
    token_ids,  # [C, k] int64, distinct in a row
    log_targets,  # [C, k + 1]: the teacher's at temperature T; the last is that of all other tokens together
    labels,  # [C] int64, or `IGNORED`
    kl_rows,  # [C] bool: the rows of the divergence
    divergences,  # [C], written: 0 in other rows
    cross_entropies,  # [C], written: 0 without a label
    gradient,  # [C, P], written; None: not wanted; ``student`` itself: in its place
    row_size,  # P
    vocab_size,
    num_kept,  # k
    divergence_weight,  # a / T
    cross_entropy_weight,  # b
    INVERSE_TEMPERATURE: tl.constexpr,
    TILE: tl.constexpr,
    KEPT: tl.constexpr,  # k or more, a power of two
):
    """Grid: (C). Both losses of a row over its k + 1 outcomes, and their gradient: see README.md.

    The known tokens' logits are taken out of the row. What stays is a softmax of its own, with its own maximum: the
    rest has digits also where its share is tiny. Where k = V it is empty, and its logarithm `LOWEST_SCORE`.
    """
    accumulated: tl.constexpr = student.dtype.element_ty
    tempered_scale: tl.constexpr = LOG2_E * INVERSE_TEMPERATURE
    is_tempered: tl.constexpr = INVERSE_TEMPERATURE != 1.0
    row = tl.program_id(0).to(tl.int64)
    student += row_start(row_size)
    label, is_labelled = label_of_row(labels)
    label_logit = logit_of(student, student_bias, label)
    kept = tl.arange(0, KEPT)
    is_kept = kept < num_kept
    ids = tl.load(token_ids + row * num_kept + kept, mask=is_kept, other=0)  # [k]
    kept_logits = tl.where(is_kept, logit_of(student, student_bias, ids), LOWEST_SCORE)
    tl.debug_barrier()  # every warp has read them before one takes them out
    tl.store(student + ids, tl.full([KEPT], LOWEST_SCORE, accumulated), mask=is_kept)
    tl.debug_barrier()

    maximum = tl.full([], LOWEST_SCORE, accumulated)
    sums = tl.zeros([TILE], accumulated)
    tempered_sums = tl.zeros([TILE], accumulated)
    for start in range(0, vocab_size, TILE):
        logits, _ = load_tile(student, student_bias, start, row_size, vocab_size, "evict_last", TILE)
        next_maximum = tl.maximum(maximum, tl.max(logits, 0))
        move = maximum - next_maximum
        logits -= next_maximum
        sums = sums * tl.exp2(move * LOG2_E) + tl.exp2(logits * LOG2_E)
        if is_tempered:
            tempered_sums = tempered_sums * tl.exp2(move * tempered_scale) + tl.exp2(logits * tempered_scale)
        maximum = next_maximum
    is_empty = maximum <= LOWEST_SCORE * 0.5
    shift = tl.where(is_empty, 0.0, maximum)
    rest_total = tl.where(is_empty, 1.0, tl.sum(sums, 0))
    tempered_rest_total = tl.where(is_empty, 1.0, tl.sum(tempered_sums, 0)) if is_tempered else rest_total

    # The outcomes' logits relative to the largest of the rest, and their logarithms of probability.
    kept_logits -= shift
    log_rest = tl.where(is_empty, LOWEST_SCORE, tl.log(rest_total))
    log_total = log_sum(kept_logits, log_rest)
    tl.store(cross_entropies + row, tl.where(is_labelled, log_total - (label_logit - shift), 0.0))
    tempered_logits = kept_logits * INVERSE_TEMPERATURE
    tempered_log_rest = tl.where(is_empty, LOWEST_SCORE, tl.log(tempered_rest_total))
    tempered_log_total = log_sum(tempered_logits, tempered_log_rest)
    tempered_logits -= tempered_log_total
    tempered_log_rest -= tempered_log_total
    log_target = tl.load(log_targets + row * (num_kept + 1) + kept, mask=is_kept, other=float("-inf"))
    log_target_rest = tl.load(log_targets + row * (num_kept + 1) + num_kept)
    target = tl.exp(log_target)
    target_rest = tl.exp(log_target_rest)
    divergence = tl.sum(outcome_terms(target, log_target, tempered_logits), 0)
    divergence += outcome_terms(target_rest, log_target_rest, tempered_log_rest)
    is_compared = tl.load(kl_rows + row)
    tl.store(divergences + row, tl.where(is_compared, divergence, 0.0))

    if gradient is not None:
        label_weight = weight_where(is_labelled, cross_entropy_weight, accumulated)
        kl_weight = weight_where(is_compared, divergence_weight, accumulated)
        target_total = tl.sum(target, 0) + target_rest  # 1, but for what the cache has rounded
        of_kept = label_weight * tl.exp(kept_logits - log_total)
        of_kept += kl_weight * (target_total * tl.exp(tempered_logits) - target)
        of_kept -= tl.where(ids == label, label_weight, 0.0)
        of_rest = label_weight * tl.exp(log_rest - log_total) / rest_total
        tempered_of_rest = kl_weight * (target_total * tl.exp(tempered_log_rest) - target_rest)
        tempered_of_rest = tempered_of_rest / tempered_rest_total
        if not is_tempered:
            of_rest += tempered_of_rest
        for start in range(0, vocab_size, TILE):
            logits, tokens = load_tile(student, student_bias, start, row_size, vocab_size, "evict_first", TILE)
            logits -= maximum
            values = tl.exp2(logits * LOG2_E) * of_rest
            if is_tempered:
                values += tl.exp2(logits * tempered_scale) * tempered_of_rest
            store_tile(gradient, values, tokens, label, label_weight, row_size)
        tl.debug_barrier()  # what stands at the known tokens is overwritten
        places = gradient + row_start(row_size) + ids
        tl.store(places, of_kept.to(gradient.dtype.element_ty), mask=is_kept)


@triton.jit
def row_start(row_size):  # type: ignore[no-untyped-def]
    """Where this program's row begins, in 64 bits."""
    return tl.program_id(0).to(tl.int64) * row_size


@triton.jit
def label_of_row(labels):  # type: ignore[no-untyped-def]
    """The label of this program's row, any token where it has none, and whether it has one."""
    label = tl.load(labels + tl.program_id(0))
    is_labelled = label != NO_LABEL
    return tl.where(is_labelled, label, 0), is_labelled


@triton.jit
def weight_where(is_used, weight, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight of a loss in the gradient of a row."""
    return tl.where(is_used, tl.full([], 1.0, dtype), 0.0) * weight


@triton.jit
def logit_of(logits, bias, tokens):  # type: ignore[no-untyped-def]
    """The logits of ``tokens`` of a row."""
    values = tl.load(logits + tokens)
    if bias is not None:
        values += tl.load(bias + tokens).to(values.dtype)
    return values


@triton.jit
def load_tile(logits, bias, start, row_size, vocab_size, EVICTION: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logits of a row from token ``start`` on, and the tokens; behind the vocabulary `LOWEST_SCORE`."""
    tokens = start + tl.arange(0, TILE)
    within = tokens < row_size
    values = tl.load(logits + tokens, mask=within, other=0.0, eviction_policy=EVICTION)
    if bias is not None:
        # In a cache all the time: every row reads it.
        values += tl.load(bias + tokens, mask=within, other=0.0, eviction_policy="evict_last").to(values.dtype)
    return tl.where(tokens < vocab_size, values, LOWEST_SCORE), tokens


@triton.jit
def store_tile(gradient, values, tokens, label, label_weight, row_size):  # type: ignore[no-untyped-def]
    """Store the gradient of a tile of a row, ``values`` less ``label_weight`` at the label."""
    values = tl.where(tokens == label, values - label_weight, values)
    places = gradient + row_start(row_size) + tokens
    tl.store(places, values.to(gradient.dtype.element_ty), mask=tokens < row_size)


@triton.jit
def log_sum(logits, last):  # type: ignore[no-untyped-def]
    """The logarithm of the sum of the exponentials of ``logits`` [k] and ``last``."""
    largest = tl.maximum(tl.max(logits, 0), last)
    return largest + tl.log(tl.sum(tl.exp(logits - largest), 0) + tl.exp(last - largest))


@triton.jit
def outcome_terms(target, log_target, log_probability):  # type: ignore[no-untyped-def]
    """What outcomes add to the divergence; one that the teacher rules out adds 0."""
    return target * tl.where(log_target == float("-inf"), 0.0, log_target - log_probability)
