import math

import pytest
import torch
from kernel_examples import LENGTHS, STUDENT, TEACHER, assert_computed_in_float32, mask, tap
from tolerances import (
    GRADIENT_AT_EQUALITY,
    HAND_WORKED_RELATIVE,
    KL_BELOW_ZERO_PER_TERM,
    LITERAL_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
)

from kd_megatron.kernels.relation_kl import BACKENDS, relation_kl

NUM_RELATION_HEADS = 6  # divides 12 and 18, and neither number of attention heads


def reference(student, teacher, num_relation_heads, valid=None):
    """One relation, by its definition: a scalar. test_relation_kl_backends.py holds the backends against it."""
    return relation_kl([student], [teacher], num_relation_heads, valid, "reference").squeeze(0)


def by_hand(student, teacher, num_relation_heads, lengths):
    """The definition, feature by feature: no reshape, no softmax, no mask."""
    total = 0.0
    for sequence, num_tokens in enumerate(lengths):
        for head in range(num_relation_heads):
            for query in range(num_tokens):
                p, q = (
                    relation_row(x[sequence], num_relation_heads, head, query, num_tokens) for x in (teacher, student)
                )
                total += sum(p_j * math.log(p_j / q_j) for p_j, q_j in zip(p, q, strict=True))
    return total


def relation_row(projection, num_relation_heads, head, query, num_keys):
    num_heads, head_size = projection.shape[1:]
    size = num_heads * head_size // num_relation_heads
    features = [divmod(feature, head_size) for feature in range(head * size, (head + 1) * size)]
    scores = [
        sum(projection[query, h, j] * projection[key, h, j] for h, j in features) / math.sqrt(size)
        for key in range(num_keys)
    ]
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def test_equals_hand_worked_loops():
    student, teacher = tap(STUDENT, 1), tap(TEACHER, 2)
    expected = by_hand(student.numpy(), teacher.numpy(), NUM_RELATION_HEADS, LENGTHS)
    assert reference(student, teacher, NUM_RELATION_HEADS, mask()).item() == pytest.approx(
        expected, rel=HAND_WORKED_RELATIVE
    )


def test_equals_a_literal():
    # Two positions, one feature. Student (1, 0): scores [[1, 0], [0, 0]]; teacher (0, 2): scores [[0, 0], [0, 4]].
    # Row 1: (1/2) ln(1/2 / 0.7310585786) + (1/2) ln(1/2 / 0.2689414214) = 0.120114506958
    # Row 2: 0.0179862100 ln(2 * 0.0179862100) + 0.9820137900 ln(2 * 0.9820137900) = 0.603052412794
    student = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    teacher = torch.tensor([0.0, 2.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    assert reference(student, teacher, 1).item() == pytest.approx(0.723166919752, rel=LITERAL_RELATIVE)


def test_reshaping_head_major_projections_is_another_quantity():
    """The mistake users make: [B, H, L, d] reshaped to [B, R, L, D/R] mixes positions."""
    student, teacher = tap(STUDENT, 1), tap(TEACHER, 2)

    def wrongly_split(projection):
        batch, length, num_heads, head_size = projection.shape
        size = num_heads * head_size // NUM_RELATION_HEADS
        wrong = projection.transpose(1, 2).reshape(batch, NUM_RELATION_HEADS, length, size)
        return wrong.transpose(1, 2)  # [B, L, R, D/R], which relation_kl takes as it is

    right = reference(student, teacher, NUM_RELATION_HEADS).item()
    wrong = reference(wrongly_split(student), wrongly_split(teacher), NUM_RELATION_HEADS).item()
    full = tuple(STUDENT[1] for _ in LENGTHS)
    expected = by_hand(student.numpy(), teacher.numpy(), NUM_RELATION_HEADS, full)
    assert right == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    assert abs(wrong - right) > 0.01 * right


@pytest.mark.parametrize("valid", [None, mask()], ids=["no padding", "padding"])
def test_gradient_is_that_of_finite_differences(valid):
    student, teacher = tap(STUDENT, 1, requires_grad=True), tap(TEACHER, 2)
    assert torch.autograd.gradcheck(lambda s: reference(s, teacher, NUM_RELATION_HEADS, valid), student)


def test_padding_has_no_effect_and_no_gradient_whatever_it_holds():
    student, teacher = tap(STUDENT, 1, requires_grad=True), tap(TEACHER, 2)
    loss = reference(student, teacher, NUM_RELATION_HEADS, mask())
    (gradient,) = torch.autograd.grad(loss, student)
    padded = ~mask()
    assert torch.all(gradient[padded] == 0.0)

    poisoned = student.detach().clone()
    poisoned[padded] = float("nan")
    poisoned.requires_grad_(True)
    poisoned_teacher = teacher.clone()
    poisoned_teacher[padded] = float("inf")
    poisoned_loss = reference(poisoned, poisoned_teacher, NUM_RELATION_HEADS, mask())
    (poisoned_gradient,) = torch.autograd.grad(poisoned_loss, poisoned)
    assert poisoned_loss.item() == loss.item()
    assert torch.equal(poisoned_gradient, gradient)


def test_more_padding_changes_nothing():
    student, teacher = tap(STUDENT, 1), tap(TEACHER, 2)
    longer = [torch.cat([x, tap((x.shape[0], 5, *x.shape[2:]), 3)], dim=1) for x in (student, teacher)]
    expected = reference(student, teacher, NUM_RELATION_HEADS, mask()).item()
    actual = reference(*longer, NUM_RELATION_HEADS, mask(length=STUDENT[1] + 5)).item()
    assert actual == pytest.approx(expected, rel=REORDERED_FLOAT64_RELATIVE)


def test_a_sequence_that_is_all_padding_adds_zero():
    student, teacher = tap(STUDENT, 1, requires_grad=True), tap(TEACHER, 2)
    empty = torch.zeros(STUDENT[:2], dtype=torch.bool)
    loss = reference(student, teacher, NUM_RELATION_HEADS, empty)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.all(student.grad == 0.0)


def test_is_zero_at_equality_and_never_negative():
    same = tap(STUDENT, 1, requires_grad=True)
    loss = reference(same, same.detach(), NUM_RELATION_HEADS, mask())
    loss.backward()
    assert loss.item() == 0.0
    assert torch.all(same.grad.abs() <= GRADIENT_AT_EQUALITY)
    for seed in range(20):
        near = tap(STUDENT, seed).float()
        value = reference(near, near + 1e-4 * tap(STUDENT, seed + 100).float(), NUM_RELATION_HEADS).item()
        assert value >= -KL_BELOW_ZERO_PER_TERM * near[..., 0, 0].numel() * NUM_RELATION_HEADS * STUDENT[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(dtype, autocast):
    teacher = tap(TEACHER, 2).to(dtype)

    def loss(student):
        return (reference(student, teacher.to(student.dtype), NUM_RELATION_HEADS, mask()),)

    assert_computed_in_float32(loss, [tap(STUDENT, 1)], dtype, autocast)


def test_large_scores_stay_finite():
    student, teacher = 40 * tap(STUDENT, 1).float(), 40 * tap(TEACHER, 2).float()
    student.requires_grad_(True)
    loss = reference(student, teacher, NUM_RELATION_HEADS, mask())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_reads_any_strides():
    student, teacher = tap(STUDENT, 1), tap(TEACHER, 2)
    head_major = student.transpose(1, 2).contiguous().transpose(1, 2)  # how attention layers hand projections over
    assert not head_major.is_contiguous()
    assert torch.equal(
        reference(head_major, teacher, NUM_RELATION_HEADS), reference(student, teacher, NUM_RELATION_HEADS)
    )


def test_teacher_may_come_from_inference_mode():
    student = tap(STUDENT, 1, requires_grad=True)
    with torch.inference_mode():
        teacher = tap(TEACHER, 2)
    reference(student, teacher, NUM_RELATION_HEADS, mask()).backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("num_relations", [1, 2, 3])
def test_one_number_per_relation(num_relations):
    students = [tap(STUDENT, seed) for seed in range(num_relations)]
    teachers = [tap(TEACHER, 10 + seed) for seed in range(num_relations)]
    together = relation_kl(students, teachers, NUM_RELATION_HEADS, mask(), "reference")
    alone = [reference(s, t, NUM_RELATION_HEADS, mask()) for s, t in zip(students, teachers, strict=True)]
    assert torch.equal(together, torch.stack(alone))


def test_auto_on_a_cpu_is_chunked():
    student, teacher = [tap(STUDENT, 1)], [tap(TEACHER, 2)]
    results = [relation_kl(student, teacher, NUM_RELATION_HEADS, mask(), backend) for backend in ("auto", "chunked")]
    assert torch.equal(*results)
    assert list(BACKENDS) == ["reference", "chunked", "triton"]


S, T = tap(STUDENT, 1), tap(TEACHER, 2)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"num_relation_heads": 5}, ValueError, r"num_relation_heads is 5.*allowed: \[1, 2, 3, 6\]"),
        ({"num_relation_heads": 0}, ValueError, "num_relation_heads is 0"),
        ({"student": S}, TypeError, "student is a Tensor; allowed: a sequence of 1 to 3 tensors"),
        ({"student": [S, None]}, TypeError, r"student\[1\] is a NoneType; allowed: a tensor"),
        ({"student": []}, ValueError, "student has 0 tensors; allowed: 1 to 3"),
        ({"teacher": [T] * 4}, ValueError, "teacher has 4 tensors; allowed: 1 to 3"),
        ({"teacher": [T]}, ValueError, "teacher has 1 tensors; allowed: 2, as many as student"),
        ({"teacher": [T, tap(TEACHER, 2, True)]}, ValueError, r"teacher\[1\] requires a gradient"),
        (
            {"teacher": [tap((3, 8, 2, 9), 2)] * 2},
            ValueError,
            r"teacher\[0\] has batch and length \(3, 8\); allowed: \(3, 7\)",
        ),
        (
            {"student": [tap((3, 7, 12), 1)] * 2},
            ValueError,
            r"student\[0\] has shape \(3, 7, 12\); allowed: \[B, L, H, d\]",
        ),
        (
            {"student": [S, tap((3, 7, 2, 6), 1)]},
            ValueError,
            r"student\[1\] has shape \(3, 7, 2, 6\); allowed: \(3, 7, 3, 4\)",
        ),
        (
            {"student": [S, S.float()]},
            TypeError,
            r"student\[1\] is torch.float32; allowed: torch.float64, as student\[0\]",
        ),
        (
            {"teacher": [T, T.float()]},
            TypeError,
            r"teacher\[1\] is torch.float32; allowed: torch.float64, as teacher\[0\]",
        ),
        ({"student": [S, S.long()]}, TypeError, r"student\[1\] is torch.int64; allowed: a floating-point dtype"),
        ({"valid": mask().long()}, TypeError, "valid is torch.int64; allowed: torch.bool"),
        ({"valid": mask()[:2]}, ValueError, r"valid has shape \(2, 7\); allowed: \(3, 7\)"),
        ({"teacher": [T, torch.empty(TEACHER, device="meta")]}, ValueError, r"teacher\[1\] is on meta; allowed: cpu"),
        ({"backend": "referense"}, ValueError, "unknown backend 'referense'; did you mean 'reference'"),
    ],
)
def test_refuses(change, error, says):
    arguments = {"student": [S, S], "teacher": [T, T], "num_relation_heads": 6, "valid": mask()}
    with pytest.raises(error, match=says):
        relation_kl(**{**arguments, **change})


def test_a_relation_head_is_a_block_of_adjacent_features():
    student, teacher = tap(STUDENT, 1), tap(TEACHER, 2)
    blocks = zip(student.flatten(2).chunk(6, dim=-1), teacher.flatten(2).chunk(6, dim=-1), strict=True)
    one_by_one = sum(reference(s[:, :, None], t[:, :, None], 1).item() for s, t in blocks)
    assert reference(student, teacher, 6).item() == pytest.approx(one_by_one, rel=REORDERED_FLOAT64_RELATIVE)
