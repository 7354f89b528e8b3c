"""The Triton kernel of `relation_kl` for short sequences: one or more parts, every gradient against float64.

test_relation_kl_backends.py reaches it in bfloat16 through the door; here it is called directly, in every dtype.

Shapes: B batch, L length, d head size, D = R * d, R relation heads, n relations.
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
    HIGH_SCORES_OF_LARGEST,
    HIGH_SCORES_RELATIVE,
)

from kd_megatron.kernels.relation_kl import reference

pytest.importorskip("triton")

from kd_megatron.kernels.relation_kl import LARGEST_WHOLE_HEAD, LONGEST_WHOLE, triton_launch, triton_whole_launch
from kd_megatron.kernels.relation_kl.triton_launch import Tiling
from kd_megatron.kernels.relation_kl.triton_whole_launch import Whole

IN_PARTS = Whole(16, 4)  # of 16 rows, so that a short relation has several
AT_ONCE = Whole(128, 8)
GRADIENT_OF_LARGEST = {
    torch.float32: FLOAT32_GRADIENT_OF_LARGEST,
    torch.bfloat16: BF16_GRADIENT_OF_LARGEST,
    torch.float16: FLOAT16_GRADIENT_OF_LARGEST,
}


def taps(shape, seed, dtype=torch.float32, num_relations=1, requires_grad=False):
    """n projections [B, L, H, d]."""
    return [tap(shape, seed + i).to(dtype).requires_grad_(requires_grad) for i in range(num_relations)]


def sums_and_gradients(student, teacher, num_heads, valid, whole):
    """The sums, and the gradients of a sum of them in which each has another weight."""
    sums = (
        triton_launch.relation_kl(student, teacher, num_heads, valid, whole)
        if whole
        else reference.relation_kl(student, teacher, num_heads, valid)
    )
    weights = torch.linspace(0.5, 2.0, len(student), dtype=sums.dtype)
    return sums.detach(), torch.autograd.grad((sums * weights).sum(), student)


def assert_exact(student, teacher, num_heads, valid=None, whole=IN_PARTS, loss=FLOAT32_LOSS_RELATIVE, gradient=None):
    sums, gradients = sums_and_gradients(student, teacher, num_heads, valid, whole)
    wide = [x.detach().double().requires_grad_() for x in student]
    exact_sums, exact = sums_and_gradients(wide, [x.double() for x in teacher], num_heads, valid, None)
    assert sums.tolist() == pytest.approx(exact_sums.tolist(), rel=loss)
    for found, wanted, x in zip(gradients, exact, student, strict=True):
        assert found.dtype == x.dtype
        tolerance = gradient or GRADIENT_OF_LARGEST[x.dtype]
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
        if valid is not None:
            assert torch.all(found[~valid] == 0.0)


@pytest.mark.parametrize("whole", [IN_PARTS, AT_ONCE], ids=["parts", "at once"])
@pytest.mark.parametrize("dtype", list(GRADIENT_OF_LARGEST))
@pytest.mark.parametrize(
    ("student_size", "teacher_size", "length"), [(16, 16, 16), (8, 16, 33), (26, 64, 50), (32, 16, 37), (16, 16, 1)]
)
def test_equals_the_definition(student_size, teacher_size, length, dtype, whole):
    """Student and teacher have other numbers of attention heads than of relation heads, and than each other."""
    student = taps((2, length, 1, 4 * student_size), 1, dtype, num_relations=2, requires_grad=length > 1)
    teacher = taps((2, length, 8, teacher_size // 2), 5, dtype, num_relations=2)
    if length > 1:
        assert_exact(student, teacher, 4, whole=whole)
    else:  # a position alone has one relation with itself: both sides are 0
        assert triton_launch.relation_kl(student, teacher, 4, None, whole).abs().max() <= FLOAT32_LOSS_RELATIVE


@pytest.mark.parametrize("length", [100, 128])
def test_equals_the_definition_with_the_blocks_that_ship(length):
    student = taps((1, length, 2, 16), 1, torch.bfloat16, num_relations=3, requires_grad=True)
    teacher = taps((1, length, 2, 16), 5, torch.bfloat16, num_relations=3)
    chosen = triton_launch.chosen(student[0].flatten(2), teacher[0].flatten(2), 2)
    assert isinstance(chosen, Whole)
    assert chosen.rows < length
    assert_exact(student, teacher, 2, whole=chosen)


@pytest.mark.parametrize("whole", [IN_PARTS, AT_ONCE], ids=["parts", "at once"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_padding_has_no_effect_and_no_gradient_whatever_it_holds(dtype, whole):
    """Padding at the end, at the beginning over whole parts, in holes, and everywhere."""
    length = 45
    holes = torch.arange(length) % 3 == 1
    valid = torch.stack([mask((23,), length)[0], ~mask((40,), length)[0], holes, torch.zeros_like(holes)])
    student = taps((4, length, 2, 8), 1, dtype, requires_grad=True)
    teacher = taps((4, length, 1, 20), 2, dtype)
    assert_exact(student, teacher, 2, valid, whole)
    padding = ~valid[:, :, None, None]
    poisoned = [x.detach().masked_fill(padding, float("nan")).requires_grad_() for x in student]
    poisoned_teacher = [x.masked_fill(padding, float("inf")) for x in teacher]
    expected = sums_and_gradients(student, teacher, 2, valid, whole)
    found = sums_and_gradients(poisoned, poisoned_teacher, 2, valid, whole)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][0], expected[1][0])


def test_scores_near_70_keep_their_accuracy():
    """Rows near a common direction, or opposite to it: scores near 70 and -70, and rows that have one large weight."""
    length, size = 40, 16
    direction = tap((size,), 3)
    direction *= (70 * size**0.5) ** 0.5 / direction.norm()
    signs = tap((length, 1), 4).sign()

    def peaky(seed):
        return (signs * direction + 0.3 * tap((length, size), seed)).float()[None, :, None, :]

    student, teacher = [peaky(5).requires_grad_()], [peaky(6)]
    assert_exact(student, teacher, 1, loss=HIGH_SCORES_RELATIVE, gradient=HIGH_SCORES_OF_LARGEST)


def test_float16_keeps_small_differences_of_relations():
    """Flat relations, the student's almost the teacher's: P_s - P_t is below 1e-5, and float16 has steps of 6e-8."""
    teacher = [(0.3 * tap((1, 120, 1, 16), 1)).half()]
    student = [(0.999 * teacher[0].double()).half().requires_grad_()]
    loss_scale = 2.0**10
    sums = triton_launch.relation_kl(student, teacher, 1, None, IN_PARTS)
    (found,) = torch.autograd.grad(loss_scale * sums.sum(), student)
    wide = student[0].detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(reference.relation_kl([wide], [teacher[0].double()], 1, None).sum(), wide)
    assert (found.double() / loss_scale - wanted).abs().max() <= FLOAT16_GRADIENT_OF_LARGEST * wanted.abs().max()


def test_agrees_with_the_kernels_of_long_sequences():
    """Beside what both are tested against: a model may train at two lengths, by one kernel each."""
    student, teacher = taps((2, 50, 2, 16), 1, requires_grad=True), taps((2, 50, 2, 16), 2)
    tiling = triton_launch.default_tiling(student[0].flatten(2), teacher[0].flatten(2), 2)
    for whole in (IN_PARTS, AT_ONCE):
        sums = triton_launch.relation_kl(student, teacher, 2, None, whole)
        tiled = triton_launch.relation_kl(student, teacher, 2, None, tiling)
        assert sums.tolist() == pytest.approx(tiled.tolist(), rel=FLOAT32_LOSS_RELATIVE)


def test_one_launch_reads_all_relations_where_they_are(monkeypatch):
    launched = []

    def launch(students, teachers, *others):
        launched.append([x.data_ptr() for x in (*students, *teachers)])
        return original(students, teachers, *others)

    original = triton_whole_launch._launch
    monkeypatch.setattr(triton_whole_launch, "_launch", launch)
    student = tap((2, 20, 3, 2, 8), 1).float().requires_grad_().unbind(2)
    teacher = tap((2, 20, 3, 2, 8), 2).float().unbind(2)
    triton_launch.relation_kl(student, teacher, 2, None, IN_PARTS).sum().backward()
    assert launched == [[x.data_ptr() for x in (*student, *teacher)]]


def test_every_number_of_a_result_is_written():
    student, teacher = taps((2, 37, 2, 8), 1, requires_grad=True), taps((2, 37, 2, 8), 2)
    valid = mask((37, 0), 37)
    expected = sums_and_gradients(student, teacher, 2, valid, IN_PARTS)
    with new_buffers_hold_nan():
        found = sums_and_gradients(student, teacher, 2, valid, IN_PARTS)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][0], expected[1][0])


def test_keeps_the_gradients_alone_and_nothing_where_none_is_wanted():
    kept = []
    student = taps((2, 20, 3, 8), 1, num_relations=2, requires_grad=True)
    teacher = taps((2, 20, 3, 8), 5, num_relations=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append((x.dtype, *x.shape)) or x, lambda x: x):
        triton_launch.relation_kl(student, teacher, 3, None, IN_PARTS)
        with torch.no_grad():
            triton_launch.relation_kl(student, teacher, 3, None, IN_PARTS)
        triton_launch.relation_kl([x.detach() for x in student], teacher, 3, None, IN_PARTS)
    assert kept == [(torch.float32, 2, 2, 20, 24)]


def test_runs_in_inference_mode_and_takes_a_teacher_from_it():
    student, teacher = taps((1, 20, 1, 16), 1, requires_grad=True), taps((1, 20, 1, 16), 2)
    expected = sums_and_gradients(student, teacher, 1, None, IN_PARTS)
    with torch.inference_mode():
        teacher_inside = [x.clone() for x in teacher]
        assert torch.equal(triton_launch.relation_kl(student, teacher_inside, 1, None, IN_PARTS), expected[0])
    assert torch.equal(sums_and_gradients(student, teacher_inside, 1, None, IN_PARTS)[1][0], expected[1][0])


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_short_sequences_of_16_bits_are_whole_and_others_are_tiled(monkeypatch, capability):
    monkeypatch.setattr(triton_whole_launch.triton_tools, "capability", lambda _: capability)

    def choice(length, head_size, dtype=torch.bfloat16):
        return triton_launch.chosen(*[torch.empty(1, length, 4 * head_size, dtype=dtype)] * 2, 4)

    for length in (1, 64, 65, LONGEST_WHOLE):
        for head_size in (1, 8, 16, 32):
            assert isinstance(choice(length, head_size), Whole)
        assert isinstance(choice(length, 16, torch.float32), Tiling)
    assert isinstance(choice(64, LARGEST_WHOLE_HEAD), Whole)
    assert isinstance(choice(LONGEST_WHOLE + 1, 16), Tiling)
    assert isinstance(choice(16, LARGEST_WHOLE_HEAD + 1), Tiling)


@pytest.mark.parametrize("capability", [100, 103, 120])
def test_all_is_tiled_where_triton_may_not_compile_the_other(monkeypatch, capability):
    monkeypatch.setattr(triton_whole_launch.triton_tools, "capability", lambda _: capability)
    tap = torch.empty(1, 16, 64, dtype=torch.bfloat16)
    assert isinstance(triton_launch.chosen(tap, tap, 4), Tiling)


def test_the_door_knows_the_limits_of_the_table():
    sizes = [limits for table in triton_whole_launch.TABLE.values() for limits in table]
    assert max(size for size, _ in sizes) == LARGEST_WHOLE_HEAD
    assert max(longest for _, longest in sizes) == LONGEST_WHOLE
