import math

import pytest
import torch
from kernel_examples import LENGTHS, assert_computed_in_float32, mask, tap
from tolerances import (
    HAND_WORKED_RELATIVE,
    LITERAL_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
)

from kd_megatron.kernels import score_mse as score_mse_package
from kd_megatron.kernels.score_mse import BACKENDS, score_mse

STUDENT = (3, 7, 3, 4)  # [B, L, H, d_s]
TEACHER = (3, 7, 3, 6)  # [B, L, H, d_t]: as many heads, of another size
RESPLIT = 2  # divides 12 and 18


def example(requires_grad=False):
    return [
        tap(STUDENT, 1, requires_grad),
        tap(STUDENT, 2, requires_grad),
        tap(TEACHER, 3),
        tap(TEACHER, 4),
    ]


def by_hand(student_queries, student_keys, teacher_queries, teacher_keys, num_heads, lengths):
    def score(queries, keys, sequence, head, i, j):
        features = queries[sequence, i].size // num_heads
        block = slice(head * features, (head + 1) * features)
        pairs = zip(queries[sequence, i].ravel()[block], keys[sequence, j].ravel()[block], strict=True)
        return sum(q * k for q, k in pairs) / math.sqrt(features)

    return sum(
        (
            score(student_queries, student_keys, sequence, head, i, j)
            - score(teacher_queries, teacher_keys, sequence, head, i, j)
        )
        ** 2
        for sequence, num_tokens in enumerate(lengths)
        for head in range(num_heads)
        for i in range(num_tokens)
        for j in range(num_tokens)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_heads", [None, RESPLIT])
def test_equals_hand_worked_loops(num_heads, backend):
    taps = example()
    expected = by_hand(*(x.numpy() for x in taps), num_heads or 3, LENGTHS)
    assert score_mse(*taps, num_heads, mask(), backend).item() == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_literal(backend):
    # One head of one feature, two positions. Student scores q k: [[2, 6], [1, 3]]; teacher: [[0, 1], [0, 2]].
    # Differences [[2, 5], [1, 1]]: 4 + 25 + 1 + 1 = 31.
    columns = ([2.0, 1.0], [1.0, 3.0], [1.0, 2.0], [0.0, 1.0])
    taps = [torch.tensor(column, dtype=torch.float64).reshape(1, 2, 1, 1) for column in columns]
    assert score_mse(*taps, backend=backend).item() == pytest.approx(31.0, rel=LITERAL_RELATIVE)


@pytest.mark.parametrize("num_heads", [None, RESPLIT])
@pytest.mark.parametrize("valid", [None, mask()], ids=["no padding", "padding"])
def test_gradient_is_that_of_finite_differences(num_heads, valid):
    queries, keys, *teacher = example(requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k: score_mse(q, k, *teacher, num_heads, valid, "reference"), (queries, keys)
    )


def test_padding_has_no_effect_and_no_gradient_whatever_it_holds():
    taps = example(requires_grad=True)
    loss = score_mse(*taps, valid=mask())
    gradients = torch.autograd.grad(loss, taps[:2])
    padded = ~mask()
    assert all(torch.all(gradient[padded] == 0.0) for gradient in gradients)

    poisoned = [x.detach().masked_fill(padded[:, :, None, None], float("nan")) for x in taps]
    for x in poisoned[:2]:
        x.requires_grad_(True)
    poisoned_loss = score_mse(*poisoned, valid=mask())
    assert poisoned_loss.item() == loss.item()
    poisoned_gradients = torch.autograd.grad(poisoned_loss, poisoned[:2])
    assert all(torch.equal(a, b) for a, b in zip(poisoned_gradients, gradients, strict=True))


def test_more_padding_changes_nothing():
    taps = example()
    longer = [torch.cat([x, tap((x.shape[0], 5, *x.shape[2:]), 9)], dim=1) for x in taps]
    expected = score_mse(*taps, valid=mask()).item()
    actual = score_mse(*longer, valid=mask(length=STUDENT[1] + 5)).item()
    assert actual == pytest.approx(expected, rel=REORDERED_FLOAT64_RELATIVE)


def test_is_zero_at_equality():
    queries, keys = tap(STUDENT, 1, requires_grad=True), tap(STUDENT, 2)
    loss = score_mse(queries, keys, queries.detach(), keys, backend="reference")
    loss.backward()
    assert loss.item() == 0.0
    assert torch.all(queries.grad == 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_computed_in_float32(dtype, autocast):
    student, teacher = example()[:2], [x.to(dtype) for x in example()[2:]]

    def loss(queries, keys):
        return (score_mse(queries, keys, *(x.to(queries.dtype) for x in teacher), valid=mask()),)

    assert_computed_in_float32(loss, student, dtype, autocast)


def test_teacher_may_come_from_inference_mode():
    student = [tap(STUDENT, seed, requires_grad=True) for seed in (1, 2)]
    with torch.inference_mode():
        teacher = [tap(TEACHER, seed) for seed in (3, 4)]
    score_mse(*student, *teacher, valid=mask()).backward()
    assert all(x.grad.abs().sum() > 0 for x in student)


@pytest.mark.parametrize(
    ("length", "student_size", "teacher_size", "num_heads", "chosen"),
    [
        (160, 64, 64, None, "tiled"),
        (161, 64, 64, None, "closed_form"),
        (60, 16, 32, None, "tiled"),
        (61, 16, 32, None, "closed_form"),
        (60, 16, 32, 1, "tiled"),
        (61, 16, 32, 1, "tiled"),  # of heads twice as large
    ],
)
def test_auto_takes_the_closed_form_for_sequences_long_against_their_heads(
    monkeypatch, length, student_size, teacher_size, num_heads, chosen
):
    calls = []
    for name in score_mse_package.BACKENDS:
        monkeypatch.setitem(score_mse_package.BACKENDS, name, lambda *_, name=name: calls.append(name))
    student, teacher = torch.zeros(1, length, 2, student_size), torch.zeros(1, length, 2, teacher_size)
    score_mse(student, student, teacher, teacher, num_heads)
    assert calls == [chosen]


@pytest.mark.parametrize("length", [7, 80])
def test_auto_equals_the_reference(length):
    taps = [tap((2, length, *x.shape[2:]), seed) for seed, x in enumerate(example())]
    auto, reference = (
        score_mse(*taps, valid=mask((length, 5), length), backend=name) for name in ("auto", "reference")
    )
    assert auto.item() == pytest.approx(reference.item(), rel=REORDERED_FLOAT64_RELATIVE)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"num_heads": 5}, ValueError, r"num_heads is 5.*allowed: \[1, 2, 3, 6\]"),
        (
            {"teacher_queries": tap((3, 7, 2, 9), 3), "teacher_keys": tap((3, 7, 2, 9), 4)},
            ValueError,
            r"teacher_queries has 2 heads; allowed: 3, as student_queries, or num_heads given, one of \[1, 2, 3, 6\]",
        ),
        ({"teacher_keys": tap((3, 7, 2, 9), 4)}, ValueError, "teacher_keys has shape"),
        ({"teacher_keys": tap(TEACHER, 4, requires_grad=True)}, ValueError, "teacher_keys requires a gradient"),
        ({"student_keys": tap((2, 7, 3, 4), 4)}, ValueError, "student_keys has batch and length"),
        ({"valid": mask().float()}, TypeError, "valid is torch.float32"),
        ({"backend": "gram"}, ValueError, "unknown backend 'gram'; known: auto, closed_form, reference, tiled, triton"),
    ],
)
def test_refuses(change, error, says):
    names = ("student_queries", "student_keys", "teacher_queries", "teacher_keys")
    with pytest.raises(error, match=says):
        score_mse(**{**dict(zip(names, example(), strict=True)), **change})
