"""Every backend of `score_mse` but the reference, against the reference in float64.

Shapes: B batch, L length, H heads, d head size.
"""

import pytest
import torch
from kernel_examples import assert_computed_in_float32, mask, tap
from recording import new_buffers_hold_nan, record
from tolerances import (
    BF16_GRADIENT_OF_LARGEST,
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    GRAM_BFLOAT16_LOSS_UNITS,
    GRAM_GRADIENT_UNITS,
    GRAM_LOSS_UNITS,
    LINEAR_GROWTH,
    REORDERED_FLOAT64_RELATIVE,
)

from kd_megatron.kernels.score_mse import BACKENDS, score_mse

LENGTHS = [1, 16, 33, 127, 128, 200]
UNIT = 2.0**-24  # the largest relative rounding of a float32 operation

pytestmark = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])


def taps(shape, teacher_shape=None, dtype=torch.float32):
    """Queries and keys of a student, which want gradients, and of a teacher: [B, L, H, d]."""
    teacher_shape = teacher_shape or shape
    student = [tap(shape, seed).to(dtype).requires_grad_(True) for seed in (1, 2)]
    return [*student, *(tap(teacher_shape, seed).to(dtype) for seed in (3, 4))]


def loss_and_gradients(taps, backend, valid=None, num_heads=None, factor=0.75):
    loss = score_mse(*taps, num_heads, valid, backend)
    return loss.detach(), torch.autograd.grad(factor * loss, taps[:2])


def in_float64(tensors):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


def assert_equals_reference(
    taps, backend, valid=None, num_heads=None, loss_tolerance=FLOAT32_LOSS_RELATIVE, gradient_tolerance=None
):
    if gradient_tolerance is None:
        wide = taps[0].dtype == torch.float32
        gradient_tolerance = FLOAT32_GRADIENT_OF_LARGEST if wide else BF16_GRADIENT_OF_LARGEST
    loss, gradients = loss_and_gradients(taps, backend, valid, num_heads)
    exact_loss, exact_gradients = loss_and_gradients(in_float64(taps), "reference", valid, num_heads)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=loss_tolerance)
    for gradient, exact, x in zip(gradients, exact_gradients, taps, strict=False):
        assert gradient.dtype == x.dtype
        assert gradient.shape == x.shape
        assert (gradient.double() - exact).abs().max() <= gradient_tolerance * exact.abs().max()


def tolerances_near_the_teacher(taps, backend):
    """Of loss and gradient, by the relative difference r of scores: README.md, precision.

    Rounded scores bound the gradient of any backend; the loss suffers in the closed form alone.
    """
    exact = in_float64([x.detach() for x in taps])
    difference, teacher = (
        score_mse(*student, *exact[2:], backend="reference")
        for student in (exact[:2], [torch.zeros_like(exact[0])] * 2)
    )
    relative = (difference / teacher).sqrt().item()
    narrow = taps[0].dtype == torch.bfloat16
    units = GRAM_BFLOAT16_LOSS_UNITS if narrow else GRAM_LOSS_UNITS
    of_loss = units * UNIT / relative**2 if backend == "closed_form" else FLOAT32_LOSS_RELATIVE
    return of_loss, GRAM_GRADIENT_UNITS * UNIT / relative + BF16_GRADIENT_OF_LARGEST * narrow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_reference(backend, length, dtype):
    assert_equals_reference(taps((2, length, 2, 16), dtype=dtype), backend)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(8, 16), (26, 64), (32, 16)])
def test_head_sizes_may_differ(backend, student_size, teacher_size):
    assert_equals_reference(taps((1, 33, 2, student_size), (1, 33, 2, teacher_size)), backend)


def test_heads_may_be_cut_anew(backend):
    assert_equals_reference(taps((2, 33, 1, 24), (2, 33, 4, 12)), backend, num_heads=2)


@pytest.mark.parametrize("kind", ["padding", "holes", "an empty sequence", "one position", "nothing"])
def test_padding_has_no_effect_and_no_gradient_whatever_it_holds(backend, kind):
    length = 70
    given = taps((2, length, 2, 8))
    valid = {
        "padding": mask((70, 37), length),
        "holes": torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.6,
        "an empty sequence": mask((0, 65), length),
        "one position": mask((1, 70), length),
        "nothing": mask((0, 0), length),
    }[kind]
    assert_equals_reference(given, backend, valid)

    loss, gradients = loss_and_gradients(given, backend, valid)
    values = (float("nan"), float("inf"), float("nan"), float("-inf"))
    poisoned = [
        x.detach().masked_fill(~valid[:, :, None, None], value).requires_grad_(x.requires_grad)
        for x, value in zip(given, values, strict=True)
    ]
    poisoned_loss, poisoned_gradients = loss_and_gradients(poisoned, backend, valid)
    assert torch.equal(poisoned_loss, loss)
    for gradient, poisoned_gradient in zip(gradients, poisoned_gradients, strict=True):
        assert torch.all(gradient[~valid] == 0.0)
        assert torch.equal(poisoned_gradient, gradient)


def test_scores_near_70_keep_their_accuracy(backend):
    """Queries and keys near a common direction, or opposite to it: scores near 70 and -70."""
    length, size = 64, 16
    direction = tap((size,), 5)
    direction *= (70 * size**0.5) ** 0.5 / direction.norm()
    signs = tap((length, 1), 6).sign()

    def peaky(seed):
        return (signs * direction + 0.3 * tap((length, size), seed)).float()[None, :, None, :]

    student = [peaky(seed).requires_grad_(True) for seed in (7, 8)]
    scores = student[0][0, :, 0] @ student[1][0, :, 0].T / size**0.5
    assert scores.max() > 70
    assert scores.min() < -70
    given = [*student, peaky(9), peaky(10)]
    assert_equals_reference(given, backend, None, None, *tolerances_near_the_teacher(given, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.3, 0.03, 0.003])
def test_near_the_teacher(backend, spread, dtype):
    shape = (1, 128, 2, 16)
    teacher = [tap(shape, seed) for seed in (3, 4)]
    student = [x + spread * tap(shape, seed) for x, seed in zip(teacher, (1, 2), strict=True)]
    given = [*(x.to(dtype).requires_grad_(True) for x in student), *(x.to(dtype) for x in teacher)]
    assert_equals_reference(given, backend, None, None, *tolerances_near_the_teacher(given, backend))


def fused(shape, seed):
    """Queries and keys as views of one projection [B, L, 3D]."""
    num_sequences, length, num_heads, size = shape
    projection = tap((num_sequences, length, 3 * num_heads * size), seed).float()
    return [part.unflatten(2, (num_heads, size)) for part in projection.chunk(3, dim=-1)[:2]]


def test_views_of_a_fused_projection_are_read_without_a_copy(backend):
    shape = (2, 33, 2, 16)
    given = [*(x.detach().requires_grad_(True) for x in fused(shape, 1)), *fused(shape, 2)]
    whole = [x.detach().contiguous().requires_grad_(x.requires_grad) for x in given]
    assert not any(x.is_contiguous() for x in given)
    loss, gradients = loss_and_gradients(given, backend)
    whole_loss, whole_gradients = loss_and_gradients(whole, backend)
    assert torch.equal(loss, whole_loss)
    assert all(map(torch.equal, gradients, whole_gradients))
    peaks = [record(lambda x=x: loss_and_gradients(x, backend)).peak_bytes for x in (given, whole)]
    assert peaks[0] == peaks[1]


def test_reads_any_strides(backend):
    given = taps((2, 17, 2, 8))
    turned = [x.detach().transpose(1, 3).contiguous().transpose(1, 3).requires_grad_(x.requires_grad) for x in given]
    assert not turned[0].is_contiguous()
    assert_equals_reference(turned, backend)
    assert_equals_reference([given[0], turned[1], turned[2], given[3]], backend)


def test_every_number_read_was_written(backend):
    given = taps((2, 70, 2, 8))
    for valid in (None, mask((70, 37), 70), mask((0, 3), 70)):
        expected = loss_and_gradients(given, backend, valid)
        with new_buffers_hold_nan():
            actual = loss_and_gradients(given, backend, valid)
        assert torch.equal(actual[0], expected[0])
        assert all(map(torch.equal, actual[1], expected[1]))


@pytest.mark.parametrize("valid", [None, mask((5, 3), 5)], ids=["no padding", "padding"])
def test_gradient_is_that_of_finite_differences(backend, valid):
    student, teacher = taps((2, 5, 1, 6), (2, 5, 1, 8), torch.float64)[:2], taps((2, 5, 1, 8), dtype=torch.float64)[2:]
    assert torch.autograd.gradcheck(
        lambda *s: score_mse(*s, *teacher, 2, valid, backend), student, fast_mode=backend == "triton"
    )


@pytest.mark.parametrize("narrow", [(), (0, 1), (2, 3), (0, 3)])
def test_is_float64_when_an_input_is(backend, narrow):
    given = taps((1, 33, 2, 8), dtype=torch.float64)
    given = [x.detach().float().requires_grad_(i < 2) if i in narrow else x for i, x in enumerate(given)]
    loss, gradients = loss_and_gradients(given, backend)
    exact_loss, exact = loss_and_gradients(in_float64(given), "reference")
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(exact_loss.item(), rel=REORDERED_FLOAT64_RELATIVE)
    for a, b, x in zip(gradients, exact, given, strict=False):
        tolerance = REORDERED_FLOAT64_RELATIVE if x.dtype == torch.float64 else FLOAT32_GRADIENT_OF_LARGEST
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("only", [0, 1])
def test_a_tensor_that_needs_no_gradient_gets_none(backend, only):
    given = taps((2, 33, 2, 8))
    _, expected = loss_and_gradients(given, backend, factor=1.0)
    student = [x if i == only else x.detach() for i, x in enumerate(given[:2])]
    score_mse(*student, *given[2:], backend=backend).backward()
    assert student[1 - only].grad is None
    assert torch.equal(student[only].grad, expected[only])


def test_no_gradient_wanted_no_work_for_it(backend):
    given = taps((2, 33, 2, 16))
    detached = [x.detach() for x in given]

    def without_grad_mode():
        with torch.no_grad():
            return score_mse(*given, backend=backend)

    expected = score_mse(*given, backend=backend)
    with_gradient = record(lambda: loss_and_gradients(given, backend))
    for compute in (without_grad_mode, lambda: score_mse(*detached, backend=backend)):
        assert not compute().requires_grad
        assert torch.equal(compute(), expected)
        assert record(compute).peak_bytes < with_gradient.peak_bytes


def test_backward_twice_gives_the_same(backend):
    given = taps((2, 33, 2, 8))
    loss = score_mse(*given, backend=backend)
    first = torch.autograd.grad(loss, given[:2], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, given[:2])))


def test_a_second_derivative_is_refused(backend):
    given = taps((1, 16, 2, 8))
    gradients = torch.autograd.grad(score_mse(*given, backend=backend) ** 2, given[:2], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradients[0].sum().backward()


def test_autocast_changes_nothing(backend):
    given = taps((2, 33, 2, 8))
    expected_loss, expected = loss_and_gradients(given, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around backward too, which torch advises against
        loss, gradients = loss_and_gradients(given, backend)
    assert torch.equal(loss, expected_loss)
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(backend, dtype):
    if backend == "triton":
        pytest.skip("its matrix products take narrow factors; see test_equals_reference")
    teacher = [tap((2, 70, 2, 16), seed).to(dtype) for seed in (3, 4)]

    def loss(queries, keys):
        return (score_mse(queries, keys, *(x.to(queries.dtype) for x in teacher), 4, mask((70, 37), 70), backend),)

    assert_computed_in_float32(loss, [tap((2, 70, 4, 6), seed) for seed in (1, 2)], dtype, autocast=False)


def test_a_gradient_beyond_the_range_of_float16_is_divided_before_it_is_rounded(backend):
    given = [x.detach().requires_grad_(x.requires_grad) for x in taps((1, 128, 1, 16), dtype=torch.float16)]
    given = [(30.0 * x).detach().requires_grad_(x.requires_grad) for x in given]
    _, wide = loss_and_gradients([x.detach().float().requires_grad_(x.requires_grad) for x in given], backend)
    _, gradients = loss_and_gradients(given, backend, factor=1e-4)
    assert wide[0].abs().max() > torch.finfo(torch.float16).max
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("padding", [False, True])
def test_makes_nothing_of_length_by_length(backend, padding):
    length = 201  # no other size here
    given = taps((2, length, 2, 8))
    valid = mask((length, 190), length) if padding else None
    recording = record(lambda: loss_and_gradients(given, backend, valid))
    assert recording.shapes
    for num_positions in (length, 190):
        assert recording.shapes_with(num_positions) == []
    assert record(lambda: loss_and_gradients(given, "reference", valid)).shapes_with(length)  # it can be seen


def test_memory_grows_linearly_with_length(backend):
    def peak(length):
        given = taps((1, length, 1, 8))
        return record(lambda: loss_and_gradients(given, backend)).peak_bytes

    length = {"triton": 64}.get(backend, 2048)  # below, the blocks of "tiled" are of one constant size
    peaks = [peak(length * factor) for factor in (1, 2, 4)]
    assert 0 < peaks[2] - peaks[1] <= LINEAR_GROWTH * 2 * (peaks[1] - peaks[0])


def test_an_empty_batch_is_zero(backend):
    given = taps((0, 5, 2, 8))
    loss, gradients = loss_and_gradients(given, backend)
    assert loss.item() == 0.0
    assert all(gradient.shape == (0, 5, 2, 8) for gradient in gradients)
