"""What holds for every backend of both doors: the definition, rows that are not used, precision, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from kernel_examples import assert_computed_in_float32, tap
from tolerances import HAND_WORKED_RELATIVE, LITERAL_RELATIVE
from vocab_examples import (
    STUDENT_SIZE,
    TEACHER_SIZE,
    VOCAB_SIZE,
    changed,
    combined,
    head,
    student_head,
    teacher_head,
    tensors,
)

from kd_megatron.kernels.vocab_kl import BACKENDS, CROSS_ENTROPY_BACKENDS, vocab_cross_entropy, vocab_kl
from kd_megatron.tensors import IGNORED, FactoredLogits

NUM_ROWS = 6
LABELS = torch.tensor([3, IGNORED, 0, 10, IGNORED, 7])
KL_ROWS = torch.tensor([True, True, False, True, False, False])  # rows with and without a label
UNUSED = ~(KL_ROWS | (LABELS != IGNORED))
TEMPERATURE = 2.5
WEIGHTS = (0.75, 1.5)

every_backend = pytest.mark.parametrize("backend", BACKENDS)
# The interpreter of "triton" is slow: there one case has finite differences, and test_vocab_kl_triton.py compares the
# gradients of all of them with those of the reference.
fast_backends = pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "triton"])


def softmax_by_hand(logits, temperature):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def logits_by_hand(head):
    states, weight, bias = (tensor.tolist() for tensor in tensors(head))
    return [
        [sum(x * w for x, w in zip(row, token, strict=True)) + b for token, b in zip(weight, bias, strict=True)]
        for row in states
    ]


def by_hand(student, teacher, labels, temperature, kl_rows):
    divergence = cross_entropy = 0.0
    for student_row, teacher_row, label, counts in zip(
        logits_by_hand(student), logits_by_hand(teacher), labels, kl_rows, strict=True
    ):
        if counts:
            p, q = softmax_by_hand(teacher_row, temperature), softmax_by_hand(student_row, temperature)
            divergence += sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True))
        if label != IGNORED:
            cross_entropy -= math.log(softmax_by_hand(student_row, 1.0)[label])
    return divergence, cross_entropy


@every_backend
@pytest.mark.parametrize("kl_rows", [None, KL_ROWS], ids=["labelled rows", "given rows"])
def test_equals_hand_worked_loops(backend, kl_rows):
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    rows = LABELS != IGNORED if kl_rows is None else kl_rows
    expected = by_hand(student, teacher, LABELS.tolist(), TEMPERATURE, rows.tolist())
    actual = vocab_kl(student, teacher, LABELS, TEMPERATURE, kl_rows, backend=backend)
    assert [x.item() for x in actual] == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    cross_entropy = vocab_cross_entropy(student, LABELS, backend)
    assert cross_entropy.item() == pytest.approx(expected[1], rel=HAND_WORKED_RELATIVE)


@every_backend
def test_equals_a_literal(backend):
    # T = 2: student logits (2, 0) -> (0.7310585786, 0.2689414214); teacher (0, 0) -> (1/2, 1/2); KL = 0.120114506958.
    # T = 1 for the label 1: -ln(1 / (1 + e^2)) = 2.126928011043.
    states, weight = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    student = FactoredLogits(states, weight, torch.ones(2, dtype=torch.float64))
    teacher = FactoredLogits(states, torch.zeros_like(weight), None)
    divergence, cross_entropy = vocab_kl(student, teacher, torch.tensor([1]), 2.0, backend=backend)
    assert divergence.item() == pytest.approx(0.120114506958, rel=LITERAL_RELATIVE)
    assert cross_entropy.item() == pytest.approx(2.126928011043, rel=LITERAL_RELATIVE)


@every_backend
def test_is_a_sum_over_the_vocabulary_not_a_mean(backend):
    """The same pair of distributions spread over twice the vocabulary has the same divergence."""
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)

    def spread(head):
        return FactoredLogits(head.states, head.weight.detach().repeat(2, 1), head.bias.detach().repeat(2))

    once, _ = vocab_kl(student, teacher, LABELS, 1.0, backend=backend)
    twice, _ = vocab_kl(spread(student), spread(teacher), LABELS, 1.0, backend=backend)
    assert twice.item() == pytest.approx(once.item(), rel=HAND_WORKED_RELATIVE)


@fast_backends
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
@pytest.mark.parametrize("kl_rows", [None, KL_ROWS], ids=["labelled rows", "given rows"])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradient_is_that_of_finite_differences(backend, temperature, kl_rows, weights, with_bias):
    student, teacher = student_head(NUM_ROWS, with_bias=with_bias), teacher_head(NUM_ROWS, with_bias=with_bias)

    def loss(*given):
        logits = FactoredLogits(*given) if with_bias else FactoredLogits(*given, None)
        return combined(vocab_kl(logits, teacher, LABELS, temperature, kl_rows, weights, backend), weights)

    assert torch.autograd.gradcheck(loss, tensors(student))


def test_gradient_in_the_interpreter_is_that_of_finite_differences():
    """Of the states alone, 30 numbers."""
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)

    def loss(states):
        logits = replace(student, states=states)
        return combined(vocab_kl(logits, teacher, LABELS, TEMPERATURE, KL_ROWS, WEIGHTS, "triton"), WEIGHTS)

    pytest.importorskip("triton")
    assert torch.autograd.gradcheck(loss, student.states)


@fast_backends
def test_gradient_of_the_cross_entropy_alone_is_that_of_finite_differences(backend):
    assert torch.autograd.gradcheck(
        lambda *given: vocab_cross_entropy(FactoredLogits(*given), LABELS, backend), tensors(student_head(NUM_ROWS))
    )


@every_backend
def test_unused_rows_have_no_effect_and_no_gradient_whatever_they_hold(backend):
    student, teacher = student_head(NUM_ROWS, requires_grad=False), teacher_head(NUM_ROWS)
    assert UNUSED.any()

    def poisoned(head, rows):
        return replace(head, states=head.states.masked_fill(rows[:, None], math.nan))

    def losses_and_gradients(student, teacher):
        student = changed(student, lambda tensor: tensor.clone().requires_grad_(True))
        losses = vocab_kl(student, teacher, LABELS, TEMPERATURE, KL_ROWS, WEIGHTS, backend)
        return *losses, *torch.autograd.grad(combined(losses, WEIGHTS), tensors(student))

    clean = losses_and_gradients(student, teacher)
    # The teacher is not read at all where only the cross-entropy is wanted.
    actual = losses_and_gradients(poisoned(student, UNUSED), poisoned(teacher, ~KL_ROWS))
    assert all(torch.equal(a, b) for a, b in zip(actual, clean, strict=True))
    assert torch.all(actual[2][UNUSED] == 0.0)
    assert torch.all(actual[2][~UNUSED].abs().sum(-1) > 0.0)


@every_backend
def test_cross_entropy_alone_does_not_read_rows_without_a_label(backend):
    student = student_head(NUM_ROWS, requires_grad=False)
    unused = LABELS == IGNORED
    poisoned = changed(
        replace(student, states=student.states.masked_fill(unused[:, None], math.inf)),
        lambda tensor: tensor.clone().requires_grad_(True),
    )
    loss = vocab_cross_entropy(poisoned, LABELS, backend)
    assert loss.item() == vocab_cross_entropy(student, LABELS, backend).item()
    gradients = torch.autograd.grad(loss, tensors(poisoned))
    assert torch.all(gradients[0][unused] == 0.0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every_backend
def test_rows_of_one_loss_alone_get_no_gradient_of_the_other(backend):
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    for weights, unused in (((1.0, 0.0), ~KL_ROWS), ((0.0, 1.0), LABELS == IGNORED)):
        losses = vocab_kl(student, teacher, LABELS, TEMPERATURE, KL_ROWS, weights, backend)
        (gradient,) = torch.autograd.grad(combined(losses, weights), student.states)
        assert torch.all(gradient[unused] == 0.0)


@every_backend
@pytest.mark.parametrize("num_rows", [NUM_ROWS, 0])
def test_no_labels_or_no_rows_at_all_give_zeros(backend, num_rows):
    student, teacher = student_head(num_rows), teacher_head(num_rows)
    labels = torch.full((num_rows,), IGNORED)
    losses = [*vocab_kl(student, teacher, labels, 1.0, backend=backend), vocab_cross_entropy(student, labels, backend)]
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0, 0.0, 0.0]
    assert all(torch.all(tensor.grad == 0.0) for tensor in tensors(student))


@every_backend
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_divergence_is_zero_at_equality(backend, temperature):
    student = student_head(NUM_ROWS)
    teacher = changed(student, torch.Tensor.detach)
    divergence, _ = vocab_kl(student, teacher, LABELS, temperature, backend=backend)
    assert divergence.item() == 0.0


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(backend, dtype, autocast):
    teacher = changed(teacher_head(NUM_ROWS), lambda tensor: tensor.to(dtype))

    def both(*student):
        same = changed(teacher, lambda tensor: tensor.to(student[0].dtype))
        return vocab_kl(FactoredLogits(*student), same, LABELS, TEMPERATURE, KL_ROWS, backend=backend)

    def cross_entropy(*student):
        return (vocab_cross_entropy(FactoredLogits(*student), LABELS, backend),)

    assert_computed_in_float32(both, tensors(student_head(NUM_ROWS)), dtype, autocast)
    assert_computed_in_float32(cross_entropy, tensors(student_head(NUM_ROWS)), dtype, autocast)


@every_backend
def test_dtypes_may_differ_and_each_gradient_has_that_of_its_tensor(backend):
    student, teacher = student_head(NUM_ROWS, requires_grad=False), teacher_head(NUM_ROWS)
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    mixed = [tensor.to(dtype).requires_grad_(True) for tensor, dtype in zip(tensors(student), dtypes, strict=True)]
    narrow_teacher = changed(teacher, torch.Tensor.bfloat16)
    losses = vocab_kl(FactoredLogits(*mixed), narrow_teacher, LABELS, TEMPERATURE, backend=backend)
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert [gradient.dtype for gradient in torch.autograd.grad(sum(losses), mixed)] == list(dtypes)


@every_backend
def test_teacher_may_come_from_inference_mode(backend):
    student = student_head(NUM_ROWS)
    with torch.inference_mode():
        teacher = teacher_head(NUM_ROWS)
    sum(vocab_kl(student, teacher, LABELS, TEMPERATURE, backend=backend)).backward()
    assert student.states.grad.abs().sum() > 0


@every_backend
def test_losses_alone_without_gradients(backend):
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    expected = [loss.item() for loss in vocab_kl(student, teacher, LABELS, TEMPERATURE, backend=backend)]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            losses = vocab_kl(student, teacher, LABELS, TEMPERATURE, backend=backend)
        assert [loss.item() for loss in losses] == expected
        assert not any(loss.requires_grad for loss in losses)


def test_auto_is_chunked_on_a_cpu():
    student, teacher = student_head(NUM_ROWS), teacher_head(NUM_ROWS)
    auto, chunked = (
        vocab_kl(student, teacher, LABELS, TEMPERATURE, gradient_weights=WEIGHTS, backend=backend)
        for backend in ("auto", "chunked")
    )
    assert all(torch.equal(a, b) for a, b in zip(auto, chunked, strict=True))
    assert auto[0].grad_fn.name() == chunked[0].grad_fn.name()
    assert vocab_cross_entropy(student, LABELS).grad_fn.name() == chunked[0].grad_fn.name()
    assert set(CROSS_ENTROPY_BACKENDS) == {*BACKENDS, "liger"}


LOGITS = tap((NUM_ROWS, VOCAB_SIZE), 1)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"student": LOGITS}, TypeError, "student is Tensor; allowed: FactoredLogits"),
        ({"teacher": LOGITS}, TypeError, "teacher is Tensor; allowed: FactoredLogits"),
        (
            {"student": head(6, 5, 1, vocab_size=12)},
            ValueError,
            "teacher.weight has 11 tokens; allowed: 12, as student",
        ),
        ({"teacher": teacher_head(4)}, ValueError, "teacher.states has 4 rows; allowed: 6, as student.states"),
        ({"student": FactoredLogits(tap((2, 3, 5), 1), tap((11, 5), 1), None)}, ValueError, r"allowed: \[N, D\]"),
        (
            {"student": FactoredLogits(tap((6, 5), 1), tap((11, 4), 1), None)},
            ValueError,
            r"student.weight has shape \(11, 4\); allowed: \[V, 5\], as student.states has 5 features",
        ),
        (
            {"student": FactoredLogits(tap((6, 5), 1), tap((11, 5), 1), tap((12,), 1))},
            ValueError,
            r"student.bias has shape \(12,\); allowed: \(11,\), as student.weight",
        ),
        (
            {"student": FactoredLogits(LABELS[:, None], tap((11, 1), 1), None)},
            TypeError,
            "student.states is torch.int64; allowed: a floating-point dtype",
        ),
        (
            {"student": changed(student_head(6), lambda tensor: tensor.to("meta"))},
            ValueError,
            "teacher.states is on cpu; allowed: meta, as student.states",
        ),
        ({"teacher": teacher_head(6, requires_grad=True)}, ValueError, "teacher.states requires a gradient"),
        (
            {"teacher": replace(teacher_head(6), weight=tap((11, 7), 1, requires_grad=True))},
            ValueError,
            "teacher.weight requires a gradient",
        ),
        (
            {"teacher": replace(teacher_head(6), bias=tap((11,), 1, requires_grad=True))},
            ValueError,
            "teacher.bias requires a gradient",
        ),
        ({"labels": LABELS.int()}, TypeError, "labels is torch.int32; allowed: torch.int64"),
        ({"labels": LABELS[:4]}, ValueError, r"labels has shape \(4,\); allowed: \(6,\)"),
        ({"labels": LABELS.clamp(max=7) + 4}, ValueError, "labels has -96; allowed: 0 to 10, or -100"),
        ({"labels": LABELS.masked_fill(LABELS == 10, 11)}, ValueError, "labels has 11; allowed: 0 to 10, or -100"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; allowed: greater than 0"),
        ({"temperature": math.nan}, ValueError, "temperature is nan"),
        ({"temperature": math.inf}, ValueError, "temperature is inf"),
        ({"kl_rows": KL_ROWS[:2]}, ValueError, r"kl_rows has shape \(2,\); allowed: \(6,\), as student.states"),
        ({"kl_rows": KL_ROWS.int()}, TypeError, "kl_rows is torch.int32; allowed: torch.bool"),
        ({"gradient_weights": (1.0, math.nan)}, ValueError, "gradient_weights is .*; allowed: two finite numbers"),
        ({"backend": "chunky"}, ValueError, "did you mean 'chunked'"),
        ({"backend": "liger"}, ValueError, "unknown backend 'liger'"),
    ],
)
def test_refuses(change, error, says):
    arguments = {
        "student": head(NUM_ROWS, STUDENT_SIZE, 1),
        "teacher": head(NUM_ROWS, TEACHER_SIZE, 2),
        "labels": LABELS,
        "temperature": TEMPERATURE,
    }
    with pytest.raises(error, match=says):
        vocab_kl(**{**arguments, **change})
    if set(change) <= {"student", "labels"} and "teacher" not in says:
        with pytest.raises(error, match=says):
            vocab_cross_entropy(**{"student": arguments["student"], "labels": LABELS, **change})
