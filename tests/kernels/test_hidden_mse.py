"""`hidden_mse`: the definition by hand, every backend against it in float64, and what the door refuses.

Shapes: B batch, L length, D features.
"""

import pytest
import torch
from kernel_examples import mask, tap
from recording import new_buffers_hold_nan
from tolerances import (
    BF16_GRADIENT_OF_LARGEST,
    FLOAT16_GRADIENT_OF_LARGEST,
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    HAND_WORKED_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
)

from kd_megatron.kernels import hidden_mse as kernel
from kd_megatron.kernels.hidden_mse import BACKENDS, hidden_mse, hidden_mse_flops

GRADIENT_OF_LARGEST = {
    torch.float32: FLOAT32_GRADIENT_OF_LARGEST,
    torch.bfloat16: BF16_GRADIENT_OF_LARGEST,
    torch.float16: FLOAT16_GRADIENT_OF_LARGEST,
}
SHAPES = [(1, 1, 1), (2, 7, 12), (3, 33, 24), (2, 5, 130), (1, 3, 4100)]  # [B, L, D]; the last: a row a program

all_backends = pytest.mark.parametrize("backend", list(BACKENDS))


def states(shape, dtype=torch.float32, teacher_dtype=None):
    """Student, which wants a gradient, and teacher: [B, L, D]."""
    return tap(shape, 1).to(dtype).requires_grad_(True), tap(shape, 2).to(teacher_dtype or dtype)


def loss_and_gradient(student, teacher, valid=None, backend="reference", factor=0.75):
    loss = hidden_mse(student, teacher, valid, backend)
    return loss.detach(), torch.autograd.grad(factor * loss, student)[0]


def assert_equals_reference(student, teacher, valid, backend):
    loss, gradient = loss_and_gradient(student, teacher, valid, backend)
    wide = student.detach().double().requires_grad_(True)
    exact_loss, exact = loss_and_gradient(wide, teacher.double(), valid)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=FLOAT32_LOSS_RELATIVE)
    assert gradient.dtype == student.dtype
    assert (gradient.double() - exact).abs().max() <= GRADIENT_OF_LARGEST[student.dtype] * exact.abs().max()


@all_backends
@pytest.mark.parametrize("valid", [None, mask((2, 1), 2)], ids=["no padding", "padding"])
def test_equals_hand_worked_loops(backend, valid):
    student, teacher = states((2, 2, 3), torch.float64)
    counted = [(b, i) for b in range(2) for i in range(2) if valid is None or valid[b, i]]
    expected = sum((student[b, i, d].item() - teacher[b, i, d].item()) ** 2 for b, i in counted for d in range(3))
    assert hidden_mse(student, teacher, valid, backend).item() == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)


@all_backends
@pytest.mark.parametrize("dtype", list(GRADIENT_OF_LARGEST))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference(backend, shape, dtype):
    assert_equals_reference(*states(shape, dtype), None, backend)


@all_backends
def test_models_may_have_two_dtypes(backend):
    assert_equals_reference(*states((2, 9, 24), torch.bfloat16, torch.float32), None, backend)
    assert_equals_reference(*states((2, 9, 24), torch.float32, torch.bfloat16), None, backend)


@all_backends
@pytest.mark.parametrize("kind", ["padding", "holes", "an empty sequence", "nothing"])
def test_padding_has_no_effect_and_no_gradient_whatever_it_holds(backend, kind):
    length = 37
    student, teacher = states((2, length, 24))
    valid = {
        "padding": mask((37, 20), length),
        "holes": torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.6,
        "an empty sequence": mask((0, 30), length),
        "nothing": mask((0, 0), length),
    }[kind]
    assert_equals_reference(student, teacher, valid, backend)
    loss, gradient = loss_and_gradient(student, teacher, valid, backend)
    padding = ~valid[:, :, None]
    poisoned = student.detach().masked_fill(padding, float("nan")).requires_grad_(True)
    found = loss_and_gradient(poisoned, teacher.masked_fill(padding, float("inf")), valid, backend)
    assert torch.equal(found[0], loss)
    assert torch.equal(found[1], gradient)
    assert torch.all(gradient[~valid] == 0.0)


@all_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_rounded_once(backend, dtype):
    """Twice the difference times the factor in float32, then to the dtype of the student: to the last bit."""
    student, teacher = states((2, 5, 24), dtype)
    factor = 0.3
    _, gradient = loss_and_gradient(student, teacher, None, backend, factor)
    difference = student.detach().float() - teacher.float()
    assert torch.equal(gradient, (difference * (2.0 * torch.tensor(factor))).to(dtype))


@all_backends
def test_float64_is_computed_in_float64(backend):
    student, teacher = states((2, 9, 24), torch.float64, torch.float32)
    loss, gradient = loss_and_gradient(student, teacher, None, backend)
    exact_loss, exact = loss_and_gradient(student, teacher.double())
    assert loss.dtype == gradient.dtype == torch.float64
    assert loss.item() == pytest.approx(exact_loss.item(), rel=REORDERED_FLOAT64_RELATIVE)
    assert torch.allclose(gradient, exact, rtol=REORDERED_FLOAT64_RELATIVE, atol=0.0)


@all_backends
def test_states_may_be_views(backend):
    """Every second layer of a stored stack, a stretch of positions, or features that are not adjacent."""
    stack = tap((2, 9, 4, 24), 1).float()
    teacher = tap((2, 9, 24), 2).float()
    for view in (stack[:, :, 2], stack.transpose(1, 2)[:, 1]):
        student = view.clone().requires_grad_(True)
        expected = loss_and_gradient(student, teacher, None, backend)
        found = loss_and_gradient(view.detach().requires_grad_(True), teacher, None, backend)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    strided = teacher.mT.contiguous().mT
    assert strided.stride(2) != 1
    assert torch.equal(hidden_mse(student, strided, None, backend), hidden_mse(student, teacher, None, backend))


@all_backends
def test_every_number_of_a_result_is_written(backend):
    student, teacher = states((3, 33, 24))
    expected = loss_and_gradient(student, teacher, mask((33, 4, 0), 33), backend)
    with new_buffers_hold_nan():
        found = loss_and_gradient(student, teacher, mask((33, 4, 0), 33), backend)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@all_backends
@pytest.mark.parametrize("shape", [(0, 4, 8), (2, 0, 8), (2, 4, 0)])
def test_no_numbers_are_zero(backend, shape):
    loss, gradient = loss_and_gradient(*states(shape), None, backend)
    assert loss.item() == 0.0
    assert gradient.shape == shape


@all_backends
def test_runs_in_inference_mode_and_takes_a_teacher_from_it(backend):
    student, teacher = states((2, 9, 24))
    expected = loss_and_gradient(student, teacher, None, backend)
    with torch.inference_mode():
        teacher_inside = teacher.clone()
        assert torch.equal(hidden_mse(student, teacher_inside, None, backend), expected[0])
    found = loss_and_gradient(student, teacher_inside.clone(), None, backend)
    assert torch.equal(found[1], expected[1])


def test_triton_keeps_the_hidden_states_alone():
    kept = []
    student, teacher = states((2, 9, 24), torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        hidden_mse(student, teacher, None, "triton")
    assert kept == [student.data_ptr()]  # the teacher is held as it is


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"student": torch.zeros(2, 3)}, ValueError, r"student has shape \(2, 3\); allowed: \[B, L, D\]"),
        ({"teacher": torch.zeros(2, 3, 5)}, ValueError, r"teacher has shape \(2, 3, 5\); allowed: \(2, 3, 4\)"),
        ({"teacher": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "teacher is torch.int64"),
        ({"teacher": torch.zeros(2, 3, 4, requires_grad=True)}, ValueError, "teacher requires a gradient"),
        ({"teacher": torch.zeros(2, 3, 4, device="meta")}, ValueError, "teacher is on meta; allowed: cpu, as student"),
        ({"valid": torch.ones(2, 3)}, TypeError, r"valid is torch.float32; allowed: torch.bool"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"valid has shape \(2, 4\); allowed: \(2, 3\)"),
        ({"backend": "tritn"}, ValueError, "unknown backend 'tritn'; did you mean 'triton'"),
    ],
)
def test_refuses_what_cannot_be_used(change, error, says):
    arguments = {"student": torch.zeros(2, 3, 4), "teacher": torch.zeros(2, 3, 4), "valid": None, "backend": "auto"}
    with pytest.raises(error, match=says):
        hidden_mse(**arguments | change)


def test_auto_is_the_reference_on_a_cpu(monkeypatch):
    monkeypatch.setattr(kernel, "BACKENDS", {"reference": BACKENDS["reference"], "triton": None})
    assert hidden_mse(*states((1, 2, 3))).item() > 0.0


def test_flops_by_hand():
    assert hidden_mse_flops(length=2, width=18) == 5 * 2 * 18
