"""Every backend of `relation_kl` but the reference, against the reference in float64.

Shapes: B batch, L length, H attention heads, d head size, D = H * d, R relation heads.
"""

import pytest
import torch
from kernel_examples import assert_computed_in_float32, mask, tap
from recording import new_buffers_hold_nan, record
from tolerances import (
    BF16_GRADIENT_OF_LARGEST,
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    HIGH_SCORES_OF_LARGEST,
    HIGH_SCORES_RELATIVE,
    LINEAR_GROWTH,
    RECOMPUTED_GRADIENT_OF_LARGEST,
    REORDERED_FLOAT64_RELATIVE,
)

from kd_megatron.kernels.relation_kl import BACKENDS, relation_kl

LENGTHS = [16, 33, 127, 128, 200]
NUM_HEADS = {"chunked": 6, "triton": 2}  # Triton's interpreter is slow
NUM_SEQUENCES = {"chunked": 2, "triton": 1}

pytestmark = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])


def taps(num_relations, shape, seed, dtype=torch.float32, requires_grad=False):
    """Projections [B, L, H, d]."""
    return [tap(shape, seed + i).to(dtype).requires_grad_(requires_grad) for i in range(num_relations)]


def example(backend, length, student_size=16, teacher_size=16, dtype=torch.float32, num_relations=2):
    """Taps of a student and a teacher whose numbers of attention heads differ from each other and from R."""
    num_sequences, num_heads = NUM_SEQUENCES[backend], NUM_HEADS[backend]
    student = taps(num_relations, (num_sequences, length, 1, num_heads * student_size), 1, dtype, True)
    teacher = taps(num_relations, (num_sequences, length, 2 * num_heads, teacher_size // 2), 50, dtype)
    return student, teacher, num_heads


def sums_and_gradients(student, teacher, num_heads, valid, backend):
    """The sums, and the gradients of a sum of them in which each has another weight."""
    sums = relation_kl(student, teacher, num_heads, valid, backend)
    weights = torch.linspace(0.5, 2.0, len(student), dtype=sums.dtype)
    return sums.detach(), torch.autograd.grad((sums * weights).sum(), student)


def in_float64(tensors):
    return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


FLOAT32_GRADIENT = {"chunked": FLOAT32_GRADIENT_OF_LARGEST, "triton": RECOMPUTED_GRADIENT_OF_LARGEST}


def assert_equals_reference(
    student, teacher, num_heads, valid, backend, loss_tolerance=FLOAT32_LOSS_RELATIVE, gradient_tolerance=None
):
    if gradient_tolerance is None:
        wide = student[0].dtype == torch.float32
        gradient_tolerance = FLOAT32_GRADIENT[backend] if wide else BF16_GRADIENT_OF_LARGEST
    sums, gradients = sums_and_gradients(student, teacher, num_heads, valid, backend)
    exact_sums, exact_gradients = sums_and_gradients(
        in_float64(student), in_float64(teacher), num_heads, valid, "reference"
    )
    assert sums.dtype == torch.float32
    assert sums.tolist() == pytest.approx(exact_sums.tolist(), rel=loss_tolerance)
    for gradient, exact, x in zip(gradients, exact_gradients, student, strict=True):
        assert gradient.dtype == x.dtype
        assert (gradient.double() - exact).abs().max() <= gradient_tolerance * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_reference(backend, length, dtype):
    student, teacher, num_heads = example(backend, length, dtype=dtype)
    assert_equals_reference(student, teacher, num_heads, None, backend)


@pytest.mark.parametrize("num_relations", [1, 3])
@pytest.mark.parametrize(("student_size", "teacher_size"), [(8, 16), (26, 64), (32, 16)])
def test_head_sizes_may_differ(backend, student_size, teacher_size, num_relations):
    student, teacher, num_heads = example(backend, 33, student_size, teacher_size, num_relations=num_relations)
    assert_equals_reference(student, teacher, num_heads, None, backend)


def test_a_position_alone_has_one_relation_with_itself(backend):
    student, teacher, num_heads = example(backend, 1)
    sums, gradients = sums_and_gradients(student, teacher, num_heads, None, backend)
    assert sums.abs().max() <= FLOAT32_LOSS_RELATIVE
    for gradient, x in zip(gradients, student, strict=True):
        assert gradient.abs().max() <= FLOAT32_GRADIENT[backend] * x.abs().max()


@pytest.mark.parametrize("kind", ["padding", "holes", "an empty sequence", "one position"])
def test_padding_has_no_effect_and_no_gradient_whatever_it_holds(backend, kind):
    length = 70
    shape = (2, length, 2, 8)
    student, teacher = taps(2, shape, 1, requires_grad=True), taps(2, shape, 50)
    valid = {
        "padding": mask((70, 37), length),
        "holes": torch.rand(2, length, generator=torch.Generator().manual_seed(0)) < 0.6,
        "an empty sequence": mask((0, 65), length),
        "one position": mask((1, 70), length),
    }[kind]
    assert_equals_reference(student, teacher, 2, valid, backend)

    sums, gradients = sums_and_gradients(student, teacher, 2, valid, backend)
    poisoned = [x.detach().masked_fill(~valid[:, :, None, None], float("nan")).requires_grad_(True) for x in student]
    poisoned_teacher = [x.masked_fill(~valid[:, :, None, None], float("inf")) for x in teacher]
    poisoned_sums, poisoned_gradients = sums_and_gradients(poisoned, poisoned_teacher, 2, valid, backend)
    assert torch.equal(poisoned_sums, sums)
    for gradient, poisoned_gradient in zip(gradients, poisoned_gradients, strict=True):
        assert torch.all(gradient[~valid] == 0.0)
        assert torch.equal(poisoned_gradient, gradient)


def test_nothing_valid_is_zero(backend):
    student, teacher, num_heads = example(backend, 16)
    nothing = torch.zeros(student[0].shape[:2], dtype=torch.bool)
    sums, gradients = sums_and_gradients(student, teacher, num_heads, nothing, backend)
    assert torch.all(sums == 0.0)
    assert all(torch.all(gradient == 0.0) for gradient in gradients)


def test_scores_near_70_keep_the_accuracy_of_the_reference(backend):
    """Rows near a common direction, or opposite to it: scores near 70 and -70, and rows that have one large weight."""
    length, size = 64, 16
    direction = tap((size,), 3)
    direction *= (70 * size**0.5) ** 0.5 / direction.norm()
    signs = tap((length, 1), 4).sign()

    def peaky(seed):
        return (signs * direction + 0.3 * tap((length, size), seed)).float()[None, :, None, :]

    student, teacher = [peaky(5).requires_grad_(True)], [peaky(6)]
    scores = student[0][0, :, 0] @ student[0][0, :, 0].T / size**0.5
    assert scores.max() > 70
    assert scores.min() < -70
    assert_equals_reference(student, teacher, 1, None, backend, HIGH_SCORES_RELATIVE, HIGH_SCORES_OF_LARGEST)


def fused(shape, seed):
    """Queries, keys and values as views of one projection [B, L, 3D]."""
    num_sequences, length, num_heads, size = shape
    projection = tap((num_sequences, length, 3 * num_heads * size), seed).float()
    return [part.unflatten(2, (num_heads, size)) for part in projection.chunk(3, dim=-1)]


def test_views_of_a_fused_projection_are_read_without_a_copy(backend):
    shape = (NUM_SEQUENCES[backend], 33, 2, 16)
    student = [view.requires_grad_(True) for view in (x.detach() for x in fused(shape, 1))]
    teacher = fused(shape, 2)
    whole_student = [x.detach().contiguous().requires_grad_(True) for x in student]
    whole_teacher = [x.contiguous() for x in teacher]
    assert not student[0].is_contiguous()
    results = sums_and_gradients(student, teacher, 2, None, backend)
    whole_results = sums_and_gradients(whole_student, whole_teacher, 2, None, backend)
    assert torch.equal(results[0], whole_results[0])
    assert all(map(torch.equal, results[1], whole_results[1]))
    recording = record(lambda: sums_and_gradients(student, teacher, 2, None, backend))
    whole_recording = record(lambda: sums_and_gradients(whole_student, whole_teacher, 2, None, backend))
    assert recording.peak_bytes == whole_recording.peak_bytes


def test_reads_any_strides(backend):
    student, teacher, num_heads = example(backend, 16)
    turned = [x.detach().transpose(1, 3).contiguous().transpose(1, 3).requires_grad_(True) for x in student]
    assert not turned[0].is_contiguous()
    assert_equals_reference(turned, teacher, num_heads, None, backend)


def test_every_number_read_was_written(backend):
    shape = (2, 70, 2, 8)
    student, teacher = taps(3, shape, 1, requires_grad=True), taps(3, shape, 50)
    for valid in (None, mask((70, 37), 70), mask((0, 3), 70)):
        expected = sums_and_gradients(student, teacher, 2, valid, backend)
        with new_buffers_hold_nan():
            actual = sums_and_gradients(student, teacher, 2, valid, backend)
        assert torch.equal(actual[0], expected[0])
        assert all(map(torch.equal, actual[1], expected[1]))


@pytest.mark.parametrize("valid", [None, mask((5, 3), 5)], ids=["no padding", "padding"])
def test_gradient_is_that_of_finite_differences(backend, valid):
    student = taps(2, (2, 5, 1, 6), 1, torch.float64, True)
    teacher = taps(2, (2, 5, 1, 8), 50, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *s: relation_kl(s, teacher, 2, valid, backend), student, fast_mode=backend == "triton"
    )


def test_is_float64_when_an_input_is(backend):
    student, teacher, num_heads = example(backend, 33, dtype=torch.float64)
    narrow = [x.float() for x in teacher]
    for one_narrow, valid in ((teacher, None), (narrow, mask((33, 20), 33)[: NUM_SEQUENCES[backend]])):
        sums, gradients = sums_and_gradients(student, one_narrow, num_heads, valid, backend)
        exact_sums, exact = sums_and_gradients(student, in_float64(one_narrow), num_heads, valid, "reference")
        assert sums.dtype == torch.float64
        assert sums.tolist() == pytest.approx(exact_sums.tolist(), rel=REORDERED_FLOAT64_RELATIVE)
        for a, b in zip(gradients, exact, strict=True):
            assert (a - b).abs().max() <= REORDERED_FLOAT64_RELATIVE * b.abs().max()


def test_relations_do_not_touch_each_other(backend):
    student, teacher, num_heads = example(backend, 33, num_relations=3)
    together = relation_kl(student, teacher, num_heads, None, backend)
    alone = [relation_kl([s], [t], num_heads, None, backend) for s, t in zip(student, teacher, strict=True)]
    assert together.tolist() == pytest.approx(torch.cat(alone).tolist(), rel=FLOAT32_LOSS_RELATIVE)
    together[1].backward()
    assert all(torch.all(student[i].grad == 0.0) for i in (0, 2))
    assert student[1].grad.abs().sum() > 0


def test_a_student_that_needs_no_gradient_gets_none(backend):
    student, teacher, num_heads = example(backend, 33)
    _, expected = sums_and_gradients(student, teacher, num_heads, None, backend)
    part = [student[0].detach(), student[1]]
    sums = relation_kl(part, teacher, num_heads, None, backend)
    (2.0 * sums[1] + sums[0]).backward()
    assert part[0].grad is None
    assert torch.equal(student[1].grad, expected[1])


def test_no_gradient_wanted_no_work_for_it(backend):
    student, teacher, num_heads = example(backend, 33)
    detached = [x.detach() for x in student]

    def without_grad_mode():
        with torch.no_grad():
            return relation_kl(student, teacher, num_heads, None, backend)

    expected = relation_kl(student, teacher, num_heads, None, backend)
    for compute in (without_grad_mode, lambda: relation_kl(detached, teacher, num_heads, None, backend)):
        assert not compute().requires_grad
        assert torch.equal(compute(), expected)
    with_gradient = record(lambda: sums_and_gradients(student, teacher, num_heads, None, backend))
    assert record(without_grad_mode).peak_bytes < with_gradient.peak_bytes


def test_backward_twice_gives_the_same(backend):
    student, teacher, num_heads = example(backend, 33)
    total = relation_kl(student, teacher, num_heads, None, backend).sum()
    first = torch.autograd.grad(total, student, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, student)))


def test_a_second_derivative_is_refused(backend):
    student, teacher, num_heads = example(backend, 16)
    total = relation_kl(student, teacher, num_heads, None, backend).sum() ** 2
    gradients = torch.autograd.grad(total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradients[0].sum().backward()


def test_autocast_changes_nothing(backend):
    student, teacher, num_heads = example(backend, 33)
    expected_sums, expected = sums_and_gradients(student, teacher, num_heads, None, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around backward too, which torch advises against
        sums, gradients = sums_and_gradients(student, teacher, num_heads, None, backend)
    assert torch.equal(sums, expected_sums)
    assert all(map(torch.equal, gradients, expected))


def test_teacher_may_come_from_inference_mode(backend):
    student, _, num_heads = example(backend, 16)
    with torch.inference_mode():
        _, teacher, _ = example(backend, 16)
    relation_kl(student, teacher, num_heads, None, backend).sum().backward()
    assert student[0].grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(backend, dtype):
    if backend == "triton":
        pytest.skip("its matrix products take factors in the dtype of the taps; see test_equals_reference")
    teacher = tap((2, 70, 2, 16), 2).to(dtype)

    def loss(student):
        return (relation_kl([student], [teacher.to(student.dtype)], 4, mask((70, 37), 70), backend).squeeze(0),)

    assert_computed_in_float32(loss, [tap((2, 70, 4, 6), 1)], dtype, autocast=False)


@pytest.mark.parametrize("padding", [False, True])
def test_makes_nothing_of_length_by_length(backend, padding):
    length = 201  # no other size here
    student, teacher, num_heads = example(backend, length)
    valid = mask((length, 190), length)[: NUM_SEQUENCES[backend]] if padding else None
    recording = record(lambda: sums_and_gradients(student, teacher, num_heads, valid, backend))
    assert recording.shapes
    for num_positions in (length, 190):
        assert recording.shapes_with(num_positions) == []
    stored = record(lambda: sums_and_gradients(student, teacher, num_heads, valid, "reference"))
    assert stored.shapes_with(length)  # the recording can see it


def test_memory_grows_linearly_with_length(backend):
    def peak(length):
        student, teacher = taps(1, (1, length, 1, 8), 1, requires_grad=True), taps(1, (1, length, 1, 8), 50)
        return record(lambda: sums_and_gradients(student, teacher, 1, None, backend)).peak_bytes

    length = {"chunked": 2048, "triton": 64}[backend]  # below, the blocks of "chunked" are of one constant size
    peaks = [peak(length * factor) for factor in (1, 2, 4)]
    assert 0 < peaks[2] - peaks[1] <= LINEAR_GROWTH * 2 * (peaks[1] - peaks[0])
