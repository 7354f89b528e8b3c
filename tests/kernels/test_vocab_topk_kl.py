"""`vocab_topk_kl`: the definition, what is lost against `vocab_kl`, rows that are not used, precision, refusals."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from kernel_examples import assert_computed_in_float32, tap
from tolerances import FLOAT32_LOSS_RELATIVE, HAND_WORKED_RELATIVE, LITERAL_RELATIVE, REORDERED_FLOAT64_RELATIVE
from vocab_examples import (
    STUDENT_SIZE,
    VOCAB_SIZE,
    assert_close_to_exact,
    changed,
    combined,
    head,
    student_head,
    teacher_head,
    tensors,
    top_of,
)

from kd_megatron.kernels.vocab_kl import BACKENDS, TOPK_BACKENDS, vocab_kl, vocab_topk_kl
from kd_megatron.kernels.vocab_kl.top_logits import top_logits
from kd_megatron.tensors import IGNORED, FactoredLogits, TopLogits

NUM_ROWS = 6
NUM_KEPT = 4
LABELS = torch.tensor([3, IGNORED, 0, 10, IGNORED, 7])
KL_ROWS = torch.tensor([True, True, False, True, False, False])  # rows with and without a label
UNUSED = ~(KL_ROWS | (LABELS != IGNORED))
TEMPERATURE = 2.5
WEIGHTS = (0.75, 1.5)

every_backend = pytest.mark.parametrize("backend", TOPK_BACKENDS)
fast_backends = pytest.mark.parametrize("backend", [backend for backend in TOPK_BACKENDS if backend != "triton"])
both_temperatures = pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])


def softmax_by_hand(logits, temperature):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def divergence_by_hand(p, q):
    return sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True))


def by_hand(student, teacher, labels, temperature, kl_rows):
    divergence = cross_entropy = 0.0
    for row, logits in enumerate(student.dense().tolist()):
        if kl_rows[row]:
            p, kept = [math.exp(x) for x in teacher.log_probabilities[row].tolist()], teacher.token_ids[row].tolist()
            q = softmax_by_hand(logits, temperature)
            others = [q_v for token, q_v in enumerate(q) if token not in kept]
            outcomes = [*p, math.exp(teacher.log_rest[row].item())]
            divergence += divergence_by_hand(outcomes, [*(q[token] for token in kept), sum(others)])
        if labels[row] != IGNORED:
            cross_entropy -= math.log(softmax_by_hand(logits, 1.0)[labels[row]])
    return divergence, cross_entropy


@every_backend
@both_temperatures
@pytest.mark.parametrize("kl_rows", [None, KL_ROWS], ids=["labelled rows", "given rows"])
def test_equals_hand_worked_loops(backend, temperature, kl_rows):
    student, teacher = student_head(NUM_ROWS), top_of(teacher_head(NUM_ROWS), NUM_KEPT, temperature)
    rows = LABELS != IGNORED if kl_rows is None else kl_rows
    expected = by_hand(student, teacher, LABELS.tolist(), temperature, rows.tolist())
    actual = vocab_topk_kl(student, teacher, LABELS, kl_rows, backend=backend)
    assert [x.item() for x in actual] == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)


@every_backend
def test_equals_a_literal(backend):
    # T = 1, student logits (ln 4, ln 2, 0, 0): (1/2, 1/4, 1/8, 1/8), so (1/4 of token 1, 3/4 of the rest).
    # The teacher has 1/2 for token 1: KL = 1/2 ln(1/2 / (1/4)) + 1/2 ln(1/2 / (3/4)) = 1/2 ln(4/3) = 0.1438410362259.
    logits = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64).log()
    student = FactoredLogits(torch.ones(1, 1, dtype=torch.float64), logits[:, None], None)
    half = torch.full((1,), 0.5, dtype=torch.float64).log()
    teacher = TopLogits(half[:, None], torch.tensor([[1]]), half, temperature=1.0)
    divergence, cross_entropy = vocab_topk_kl(student, teacher, torch.tensor([2]), backend=backend)
    assert divergence.item() == pytest.approx(0.1438410362259, rel=LITERAL_RELATIVE)
    assert cross_entropy.item() == pytest.approx(math.log(8), rel=LITERAL_RELATIVE)


@fast_backends
@both_temperatures
@pytest.mark.parametrize("kl_rows", [None, KL_ROWS], ids=["labelled rows", "given rows"])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradient_is_that_of_finite_differences(backend, temperature, kl_rows, weights, with_bias):
    student = student_head(NUM_ROWS, with_bias=with_bias)
    teacher = top_of(teacher_head(NUM_ROWS), NUM_KEPT, temperature)

    def loss(*given):
        logits = FactoredLogits(*given) if with_bias else FactoredLogits(*given, None)
        return combined(vocab_topk_kl(logits, teacher, LABELS, kl_rows, weights, backend), weights)

    assert torch.autograd.gradcheck(loss, tensors(student))


# --- beside the whole divergence ---


@every_backend
@both_temperatures
@pytest.mark.parametrize("num_kept", [1, NUM_KEPT, VOCAB_SIZE - 2, VOCAB_SIZE - 1])
def test_what_is_lost_is_the_divergence_within_the_rest(backend, temperature, num_kept):
    """KL = KL of the k + 1 outcomes + p_t(rest) * KL(p_t given the rest || p_s given the rest); README.md."""
    student, teacher_logits = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    teacher = top_of(teacher_logits, num_kept, temperature)
    lost = 0.0
    for row in KL_ROWS.nonzero().flatten().tolist():
        p, q = (softmax_by_hand(x.dense()[row].tolist(), temperature) for x in (teacher_logits, student))
        rest = [token for token in range(VOCAB_SIZE) if token not in teacher.token_ids[row].tolist()]
        p_rest, q_rest = sum(p[token] for token in rest), sum(q[token] for token in rest)
        within = divergence_by_hand([p[token] / p_rest for token in rest], [q[token] / q_rest for token in rest])
        lost += p_rest * within
    whole, whole_ce = vocab_kl(student, teacher_logits, LABELS, temperature, KL_ROWS, backend=backend)
    bound, bound_ce = vocab_topk_kl(student, teacher, LABELS, KL_ROWS, backend=backend)
    assert bound.item() + lost == pytest.approx(whole.item(), rel=REORDERED_FLOAT64_RELATIVE)
    assert bound_ce.item() == pytest.approx(whole_ce.item(), rel=REORDERED_FLOAT64_RELATIVE)
    assert (lost > 0.01 * whole.item()) == (num_kept <= NUM_KEPT)  # one token alone has no divergence within


@every_backend
@both_temperatures
def test_with_every_token_it_is_the_whole_divergence(backend, temperature):
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    every_token = top_of(teacher, VOCAB_SIZE, temperature)
    assert torch.all(every_token.log_rest == -math.inf)

    def with_gradients(losses):
        return list(losses), list(torch.autograd.grad(combined(losses, WEIGHTS), tensors(student)))

    actual = with_gradients(vocab_topk_kl(student, every_token, LABELS, KL_ROWS, WEIGHTS, backend))
    exact = with_gradients(vocab_kl(student, teacher, LABELS, temperature, KL_ROWS, WEIGHTS, backend))
    assert_close_to_exact(actual, exact, REORDERED_FLOAT64_RELATIVE, REORDERED_FLOAT64_RELATIVE)


@every_backend
def test_more_tokens_never_lower_the_bound(backend):
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    bounds = [
        vocab_topk_kl(student, top_of(teacher, num_kept, TEMPERATURE), LABELS, backend=backend)[0].item()
        for num_kept in range(1, VOCAB_SIZE + 1)
    ]
    assert all(one < more for one, more in pairwise(bounds[:-1]))
    assert bounds[-1] == pytest.approx(bounds[-2], rel=REORDERED_FLOAT64_RELATIVE)  # the rest was one token


@every_backend
@both_temperatures
def test_a_rest_that_the_teacher_rules_out_still_pulls_the_student(backend, temperature):
    """log_rest of minus infinity with tokens left: finite, and every token of the rest is pushed down."""
    student = student_head(NUM_ROWS)
    teacher = top_of(teacher_head(NUM_ROWS), NUM_KEPT, temperature)
    normalised = teacher.log_probabilities.log_softmax(-1)
    teacher = TopLogits(normalised, teacher.token_ids, torch.full((NUM_ROWS,), -math.inf), temperature)
    divergence, _ = vocab_topk_kl(student, teacher, LABELS, gradient_weights=(1.0, 0.0), backend=backend)
    expected = 0.0
    for row in (LABELS != IGNORED).nonzero().flatten().tolist():
        q = softmax_by_hand(student.dense()[row].tolist(), temperature)
        kept = [q[token] for token in teacher.token_ids[row].tolist()]
        expected += divergence_by_hand(normalised[row].exp().tolist(), kept)
    assert divergence.item() == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    gradients = torch.autograd.grad(divergence, tensors(student))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    never_kept = [token for token in range(VOCAB_SIZE) if not (teacher.token_ids == token)[LABELS != IGNORED].any()]
    assert never_kept
    assert torch.all(gradients[2][never_kept] > 0)


@every_backend
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_rest_far_below_the_least_number_above_zero_is_not_lost(backend, temperature):
    """In float32 exp(-400) is 0 and 1 less the kept probability too: only the logarithm of the rest has digits."""
    logits = torch.tensor([400.0, 0.0, 1.0], dtype=torch.float32)
    student = FactoredLogits(torch.ones(1, 1), logits[:, None].clone().requires_grad_(True), None)
    half = torch.full((1,), math.log(0.5))
    teacher = TopLogits(half[:, None], torch.tensor([[0]]), half, temperature)
    divergence, _ = vocab_topk_kl(student, teacher, torch.tensor([0]), None, (1.0, 0.0), backend)
    # p_s of the rest: exp(-400 / T) * (1 + exp(1 / T)); KL = ln(1/2) - (0 + that logarithm) / 2.
    log_rest = -400 / temperature + math.log(1 + math.exp(1 / temperature))
    assert divergence.item() == pytest.approx(math.log(0.5) - log_rest / 2, rel=FLOAT32_LOSS_RELATIVE)
    (gradient,) = torch.autograd.grad(divergence, student.weight)
    within = softmax_by_hand([0.0, 1.0], temperature)
    expected = [0.5 / temperature, -0.5 * within[0] / temperature, -0.5 * within[1] / temperature]
    assert gradient.flatten().tolist() == pytest.approx(expected, rel=FLOAT32_LOSS_RELATIVE)


# --- rows ---


@every_backend
def test_unused_rows_have_no_effect_and_no_gradient_whatever_they_hold(backend):
    student = student_head(NUM_ROWS, requires_grad=False)
    teacher = top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)
    assert UNUSED.any()
    poisoned_student = replace(student, states=student.states.masked_fill(UNUSED[:, None], math.nan))
    poisoned_teacher = TopLogits(  # not read at all where only the cross-entropy is wanted
        teacher.log_probabilities.masked_fill(~KL_ROWS[:, None], math.nan),
        teacher.token_ids.masked_fill(~KL_ROWS[:, None], -7),
        teacher.log_rest.masked_fill(~KL_ROWS, math.inf),
        TEMPERATURE,
    )

    def losses_and_gradients(student, teacher):
        student = changed(student, lambda tensor: tensor.clone().requires_grad_(True))
        losses = vocab_topk_kl(student, teacher, LABELS, KL_ROWS, WEIGHTS, backend)
        return *losses, *torch.autograd.grad(combined(losses, WEIGHTS), tensors(student))

    clean = losses_and_gradients(student, teacher)
    actual = losses_and_gradients(poisoned_student, poisoned_teacher)
    assert all(torch.equal(a, b) for a, b in zip(actual, clean, strict=True))
    assert torch.all(actual[2][UNUSED] == 0.0)
    assert torch.all(actual[2][~UNUSED].abs().sum(-1) > 0.0)


@every_backend
@pytest.mark.parametrize("num_rows", [NUM_ROWS, 0])
def test_no_labels_or_no_rows_at_all_give_zeros(backend, num_rows):
    student, teacher = student_head(num_rows), top_of(teacher_head(num_rows), NUM_KEPT, 1.0)
    losses = vocab_topk_kl(student, teacher, torch.full((num_rows,), IGNORED), backend=backend)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert all(torch.all(tensor.grad == 0.0) for tensor in tensors(student))


@every_backend
def test_the_order_of_the_tokens_is_free(backend):
    student, teacher = student_head(NUM_ROWS), top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)
    turned = TopLogits(teacher.log_probabilities.flip(-1), teacher.token_ids.flip(-1), teacher.log_rest, TEMPERATURE)
    one, other = (vocab_topk_kl(student, given, LABELS, KL_ROWS, backend=backend)[0] for given in (teacher, turned))
    assert one.item() == pytest.approx(other.item(), rel=REORDERED_FLOAT64_RELATIVE)


# --- precision ---


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(backend, dtype, autocast):
    exact = top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)
    kept, rest = exact.log_probabilities.to(dtype), exact.log_rest.to(dtype)

    def losses(*student):
        wide = student[0].dtype
        teacher = TopLogits(kept.to(wide), exact.token_ids, rest.to(wide), TEMPERATURE)
        return vocab_topk_kl(FactoredLogits(*student), teacher, LABELS, KL_ROWS, backend=backend)

    assert_computed_in_float32(losses, tensors(student_head(NUM_ROWS)), dtype, autocast)


@every_backend
def test_teacher_may_come_from_inference_mode_and_losses_alone_without_gradients(backend):
    student = student_head(NUM_ROWS)
    with torch.inference_mode():
        teacher = top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)
    losses = vocab_topk_kl(student, teacher, LABELS, backend=backend)
    sum(losses).backward()
    assert student.states.grad.abs().sum() > 0
    with torch.no_grad():
        alone = vocab_topk_kl(student, teacher, LABELS, backend=backend)
    assert [loss.item() for loss in alone] == [loss.item() for loss in losses]
    assert not any(loss.requires_grad for loss in alone)


def test_backends_have_the_names_of_the_other_door_and_auto_is_chunked_on_a_cpu():
    assert list(TOPK_BACKENDS) == list(BACKENDS)
    student, teacher = student_head(NUM_ROWS), top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)
    auto, chunked = (vocab_topk_kl(student, teacher, LABELS, backend=backend) for backend in ("auto", "chunked"))
    assert all(torch.equal(a, b) for a, b in zip(auto, chunked, strict=True))
    assert auto[0].grad_fn.name() == chunked[0].grad_fn.name()


# --- what a cache keeps ---


@both_temperatures
def test_top_logits_are_the_likeliest_and_the_rest(temperature):
    logits = teacher_head(NUM_ROWS).dense()
    kept = top_logits(logits.unflatten(0, (2, 3)), NUM_KEPT, temperature)
    assert kept.log_probabilities.shape == kept.token_ids.shape == (2, 3, NUM_KEPT)
    for row, of_row in enumerate(logits.tolist()):
        p = softmax_by_hand(of_row, temperature)
        ordered = sorted(range(VOCAB_SIZE), key=lambda token: -p[token])
        assert kept.rows().token_ids[row].tolist() == ordered[:NUM_KEPT]
        expected = [math.log(p[token]) for token in ordered[:NUM_KEPT]]
        assert kept.rows().log_probabilities[row].tolist() == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
        rest = math.log(sum(p[token] for token in ordered[NUM_KEPT:]))
        assert kept.rows().log_rest[row].item() == pytest.approx(rest, rel=HAND_WORKED_RELATIVE)


def test_top_logits_of_bfloat16_are_float32_and_keep_a_tiny_rest():
    kept = top_logits(torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.bfloat16), 1, 1.0)
    assert kept.log_probabilities.dtype == kept.log_rest.dtype == torch.float32
    assert kept.log_probabilities.item() == 0.0
    assert kept.log_rest.item() == pytest.approx(-200 + math.log(2), rel=FLOAT32_LOSS_RELATIVE)


@pytest.mark.parametrize(
    ("num_tokens", "temperature", "says"),
    [(0, 1.0, "num_tokens is 0; allowed: 1 to 11"), (12, 1.0, "num_tokens is 12"), (3, 0.0, "temperature is 0.0")],
)
def test_top_logits_refuse(num_tokens, temperature, says):
    with pytest.raises(ValueError, match=says):
        top_logits(teacher_head(NUM_ROWS).dense(), num_tokens, temperature)


# --- refusals ---

TOP = top_of(teacher_head(NUM_ROWS), NUM_KEPT, TEMPERATURE)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"student": tap((6, 11), 1)}, TypeError, "student is Tensor; allowed: FactoredLogits"),
        ({"teacher": teacher_head(6)}, TypeError, "teacher is FactoredLogits; allowed: TopLogits"),
        ({"teacher": replace(TOP, temperature=0.0)}, ValueError, "teacher.temperature is 0.0; allowed: greater than 0"),
        ({"teacher": replace(TOP, token_ids=TOP.token_ids.int())}, TypeError, "token_ids is torch.int32"),
        (
            {"teacher": replace(TOP, token_ids=TOP.token_ids[:, :2])},
            ValueError,
            r"token_ids has shape \(6, 2\); allowed: \(6, 4\)",
        ),
        (
            {"teacher": replace(TOP, log_rest=TOP.log_rest[:4])},
            ValueError,
            r"log_rest has shape \(4,\); allowed: \(6,\)",
        ),
        (
            {"student": head(4, STUDENT_SIZE, 1), "labels": LABELS[:4]},
            ValueError,
            r"log_probabilities has shape \(6, 4\); allowed: \(4, 4\)",
        ),
        ({"teacher": TopLogits(tap((6, 0), 1), LABELS[:, None][:, :0], TOP.log_rest, 1.0)}, ValueError, "0 tokens"),
        (
            {"student": head(6, 5, 1, vocab_size=3), "labels": LABELS.clamp(max=2)},
            ValueError,
            "has 4 tokens; allowed: 1 to 3",
        ),
        ({"labels": LABELS.masked_fill(LABELS == 10, 11)}, ValueError, "labels has 11; allowed: 0 to 10"),
        ({"teacher": replace(TOP, token_ids=TOP.token_ids + 6)}, ValueError, "token_ids has .*; allowed: 0 to 10"),
        (
            {"teacher": replace(TOP, token_ids=torch.tensor([1, 2, 5, 1]).expand(6, 4))},
            ValueError,
            "token_ids has 1 twice in one row; allowed: distinct tokens",
        ),
        (
            {"teacher": replace(TOP, log_probabilities=TOP.log_probabilities + 1.0)},
            ValueError,
            "probabilities, the rest included, add up to .* in a row; allowed: 1",
        ),
        (
            {"teacher": replace(TOP, log_probabilities=TOP.log_probabilities.clone().requires_grad_(True))},
            ValueError,
            "teacher.log_probabilities requires a gradient",
        ),
        (
            {"teacher": replace(TOP, log_rest=TOP.log_rest.to("meta"))},
            ValueError,
            "teacher.log_rest is on meta; allowed: cpu, as student.states",
        ),
        ({"kl_rows": KL_ROWS[:2]}, ValueError, r"kl_rows has shape \(2,\)"),
        ({"gradient_weights": (math.inf, 1.0)}, ValueError, "gradient_weights is .*; allowed: two finite numbers"),
        ({"backend": "liger"}, ValueError, "unknown backend 'liger'"),
    ],
)
def test_refuses(change, error, says):
    arguments = {"student": head(NUM_ROWS, STUDENT_SIZE, 1), "teacher": TOP, "labels": LABELS}
    with pytest.raises(error, match=says):
        vocab_topk_kl(**{**arguments, **change})


def test_what_is_not_a_number_is_handed_on_for_the_step_to_stop():
    student = student_head(NUM_ROWS, requires_grad=False)
    broken = replace(TOP, log_probabilities=torch.full_like(TOP.log_probabilities, math.nan))
    divergence, cross_entropy = vocab_topk_kl(student, broken, LABELS)
    assert math.isnan(divergence.item())
    assert math.isfinite(cross_entropy.item())
