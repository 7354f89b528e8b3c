import math

import pytest
import torch
from kernel_examples import assert_computed_in_float32, tap
from tolerances import HAND_WORKED_RELATIVE, LITERAL_RELATIVE

from kd_megatron.kernels.vocab_kl import vocab_kl
from kd_megatron.tensors import IGNORED

SHAPE = (6, 11)  # [N, V]
LABELS = torch.tensor([3, IGNORED, 0, 10, IGNORED, 7])
KL_ROWS = torch.tensor([True, True, False, True, False, False])  # rows with and without a label
TEMPERATURE = 2.5


def softmax_by_hand(logits, temperature):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def by_hand(student, teacher, labels, temperature, kl_rows):
    divergence = cross_entropy = 0.0
    for student_row, teacher_row, label, counts in zip(student, teacher, labels, kl_rows, strict=True):
        if counts:
            p, q = softmax_by_hand(teacher_row, temperature), softmax_by_hand(student_row, temperature)
            divergence += sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True))
        if label != IGNORED:
            cross_entropy -= math.log(softmax_by_hand(student_row, 1.0)[label])
    return divergence, cross_entropy


@pytest.mark.parametrize("kl_rows", [None, KL_ROWS], ids=["labelled rows", "given rows"])
def test_equals_hand_worked_loops(kl_rows):
    student, teacher = tap(SHAPE, 1), tap(SHAPE, 2)
    rows = LABELS != IGNORED if kl_rows is None else kl_rows
    expected = by_hand(student.tolist(), teacher.tolist(), LABELS.tolist(), TEMPERATURE, rows.tolist())
    actual = vocab_kl(student, teacher, LABELS, TEMPERATURE, kl_rows)
    assert [x.item() for x in actual] == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)


def test_equals_a_literal():
    # T = 2: student logits (2, 0) -> (0.7310585786, 0.2689414214); teacher (0, 0) -> (1/2, 1/2); KL = 0.120114506958.
    # T = 1 for the label 1: -ln(1 / (1 + e^2)) = 2.126928011043.
    student, teacher = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    divergence, cross_entropy = vocab_kl(student, teacher, torch.tensor([1]), 2.0)
    assert divergence.item() == pytest.approx(0.120114506958, rel=LITERAL_RELATIVE)
    assert cross_entropy.item() == pytest.approx(2.126928011043, rel=LITERAL_RELATIVE)


def test_is_a_sum_over_the_vocabulary_not_a_mean():
    """The same pair of distributions spread over twice the vocabulary has the same divergence."""
    student, teacher = tap(SHAPE, 1), tap(SHAPE, 2)
    once, _ = vocab_kl(student, teacher, LABELS, 1.0)
    twice, _ = vocab_kl(student.repeat(1, 2), teacher.repeat(1, 2), LABELS, 1.0)
    assert twice.item() == pytest.approx(once.item(), rel=HAND_WORKED_RELATIVE)


@pytest.mark.parametrize("kl_rows", [None, KL_ROWS])
def test_gradient_is_that_of_finite_differences(kl_rows):
    student, teacher = tap(SHAPE, 1, requires_grad=True), tap(SHAPE, 2)
    assert torch.autograd.gradcheck(lambda s: vocab_kl(s, teacher, LABELS, TEMPERATURE, kl_rows), student)


def test_unused_rows_have_no_effect_and_no_gradient_whatever_they_hold():
    student, teacher = tap(SHAPE, 1), tap(SHAPE, 2)
    unused = ~(KL_ROWS | (LABELS != IGNORED))
    assert unused.any()
    poisoned = student.masked_fill(unused[:, None], float("nan")).requires_grad_(True)
    poisoned_teacher = teacher.masked_fill(unused[:, None], float("nan"))
    clean = vocab_kl(student, teacher, LABELS, TEMPERATURE, KL_ROWS)
    actual = vocab_kl(poisoned, poisoned_teacher, LABELS, TEMPERATURE, KL_ROWS)
    assert all(torch.equal(a, b) for a, b in zip(actual, clean, strict=True))
    (gradient,) = torch.autograd.grad(sum(actual), poisoned)
    assert torch.all(gradient[unused] == 0.0)
    assert torch.isfinite(gradient).all()


def test_rows_of_one_loss_alone_get_no_gradient_of_the_other():
    student, teacher = tap(SHAPE, 1, requires_grad=True), tap(SHAPE, 2)
    divergence, cross_entropy = vocab_kl(student, teacher, LABELS, TEMPERATURE, KL_ROWS)
    (of_divergence,) = torch.autograd.grad(divergence, student, retain_graph=True)
    (of_cross_entropy,) = torch.autograd.grad(cross_entropy, student)
    assert torch.all(of_divergence[~KL_ROWS] == 0.0)
    assert torch.all(of_cross_entropy[LABELS == IGNORED] == 0.0)


def test_no_labels_at_all_gives_zeros():
    student, teacher = tap(SHAPE, 1, requires_grad=True), tap(SHAPE, 2)
    losses = vocab_kl(student, teacher, torch.full((SHAPE[0],), IGNORED), TEMPERATURE)
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    assert torch.all(student.grad == 0.0)


def test_divergence_is_zero_at_equality():
    student = tap(SHAPE, 1, requires_grad=True)
    divergence, _ = vocab_kl(student, student.detach(), LABELS, TEMPERATURE)
    assert divergence.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(dtype, autocast):
    teacher = tap(SHAPE, 2).to(dtype)

    def losses(student):
        return vocab_kl(student, teacher.to(student.dtype), LABELS, TEMPERATURE, KL_ROWS)

    assert_computed_in_float32(losses, [tap(SHAPE, 1)], dtype, autocast)


def test_teacher_may_come_from_inference_mode():
    student = tap(SHAPE, 1, requires_grad=True)
    with torch.inference_mode():
        teacher = tap(SHAPE, 2)
    sum(vocab_kl(student, teacher, LABELS, TEMPERATURE)).backward()
    assert student.grad.abs().sum() > 0


def test_auto_is_the_reference():
    student, teacher = tap(SHAPE, 1), tap(SHAPE, 2)
    auto, reference = (
        vocab_kl(student, teacher, LABELS, TEMPERATURE, backend=backend) for backend in ("auto", "reference")
    )
    assert all(torch.equal(a, b) for a, b in zip(auto, reference, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"teacher_logits": tap((6, 12), 2)}, ValueError, r"teacher_logits has shape \(6, 12\); allowed: \(6, 11\)"),
        ({"student_logits": tap((2, 3, 11), 2)}, ValueError, r"allowed: \[N, V\]"),
        ({"teacher_logits": tap(SHAPE, 2, requires_grad=True)}, ValueError, "teacher_logits requires a gradient"),
        ({"labels": LABELS.int()}, TypeError, "labels is torch.int32; allowed: torch.int64"),
        ({"labels": LABELS[:4]}, ValueError, r"labels has shape \(4,\); allowed: \(6,\)"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; allowed: greater than 0"),
        ({"temperature": math.nan}, ValueError, "temperature is nan"),
        ({"kl_rows": KL_ROWS[:2]}, ValueError, r"kl_rows has shape \(2,\)"),
        ({"backend": "auto_"}, ValueError, "did you mean 'auto'"),
    ],
)
def test_refuses(change, error, says):
    arguments = {
        "student_logits": tap(SHAPE, 1),
        "teacher_logits": tap(SHAPE, 2),
        "labels": LABELS,
        "temperature": TEMPERATURE,
    }
    with pytest.raises(error, match=says):
        vocab_kl(**{**arguments, **change})
