"""What is particular to the Triton kernels of `relation_kl`: tiles smaller than the relation, launches, small numbers.

test_relation_kl_backends.py holds them, with the tiles they ship with, to what every backend must do. Here they are
called directly, with tiles so small that a short relation has many, and an end that fills none.

Shapes: B batch, L length, d head size, D = R * d, R relation heads, n relations.
"""

import pytest
import torch
from kernel_examples import mask, tap
from tolerances import (
    BF16_GRADIENT_OF_LARGEST,
    FLOAT16_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    HIGH_SCORES_OF_LARGEST,
    HIGH_SCORES_RELATIVE,
    RECOMPUTED_GRADIENT_OF_LARGEST,
)

from kd_megatron.kernels.relation_kl import reference

pytest.importorskip("triton")

from kd_megatron.kernels.relation_kl import LARGEST_TRITON_HEAD, triton_launch
from kd_megatron.kernels.relation_kl.triton_launch import Blocks, Tiling

SMALL = Tiling(forward=Blocks(32, 16, 4, 1), backward=Blocks(16, 32, 4, 1))  # rows and columns differ, either way
GRADIENT_OF_LARGEST = {
    torch.float32: RECOMPUTED_GRADIENT_OF_LARGEST,
    torch.bfloat16: BF16_GRADIENT_OF_LARGEST,
    torch.float16: FLOAT16_GRADIENT_OF_LARGEST,
}


def taps(shape, seed, dtype=torch.float32, num_relations=1, requires_grad=False):
    """n projections [B, L, H, d]."""
    return [tap(shape, seed + i).to(dtype).requires_grad_(requires_grad) for i in range(num_relations)]


def exact(student, teacher, num_heads, valid=None):
    """Sums and gradients by the definition, in float64 from the same numbers."""
    wide = [x.detach().double().requires_grad_() for x in student]
    sums = reference.relation_kl(wide, [x.double() for x in teacher], num_heads, valid)
    return sums.detach(), torch.autograd.grad(sums.sum(), wide)


def assert_exact(student, teacher, num_heads, valid=None, tiling=SMALL, loss=FLOAT32_LOSS_RELATIVE, gradient=None):
    sums = triton_launch.relation_kl(student, teacher, num_heads, valid, tiling)
    exact_sums, exact_gradients = exact(student, teacher, num_heads, valid)
    assert sums.tolist() == pytest.approx(exact_sums.tolist(), rel=loss)
    for found, wanted, x in zip(torch.autograd.grad(sums.sum(), student), exact_gradients, student, strict=True):
        assert found.dtype == x.dtype
        tolerance = gradient or GRADIENT_OF_LARGEST[x.dtype]
        assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
        if valid is not None:
            assert torch.all(found[~valid] == 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("student_size", "teacher_size", "length"), [(16, 16, 16), (8, 16, 33), (26, 64, 50), (32, 16, 37)]
)
def test_equals_the_definition_over_many_tiles(student_size, teacher_size, length, dtype):
    student = taps((2, length, 3, student_size), 1, dtype, requires_grad=True)
    teacher = taps((2, length, 3, teacher_size), 2, dtype)
    assert_exact(student, teacher, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_definition_with_whole_tiles_of_padding(dtype):
    length = 70
    valid = torch.stack([mask((23,), length)[0], ~mask((40,), length)[0], torch.arange(length) % 3 == 1])
    student = taps((3, length, 2, 8), 1, dtype, requires_grad=True)
    teacher = taps((3, length, 1, 20), 2, dtype)
    assert_exact(student, teacher, 2, valid)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_maxima_that_move_from_tile_to_tile(direction):
    """Positions grow in length: scores climb to +-70 along a row, or fall; teacher and student at their own pace."""
    length, size = 64, 16

    def growing(seed, pace):
        lengths = torch.linspace(0.1, 1.0, length, dtype=torch.float64) ** pace
        unit = torch.nn.functional.normalize(tap((size,), 9), dim=0) * torch.where(tap((length, 1), 8) > 0, 1.0, -1.0)
        rows = (70 * size**0.5) ** 0.5 * lengths[:, None] * (unit + 0.05 * tap((length, size), seed))
        return (rows if direction == "up" else rows.flip(0)).float()[None, :, None, :]

    student, teacher = [growing(1, 1.0).requires_grad_()], [growing(2, 1.5)]
    scores = student[0][0, :, 0] @ student[0][0, :, 0].T / size**0.5
    assert scores.max() > 70
    assert scores.min() < -70
    assert_exact(student, teacher, 1, loss=HIGH_SCORES_RELATIVE, gradient=HIGH_SCORES_OF_LARGEST)


def test_rows_whose_sums_lie_more_than_87_nats_apart():
    """One position 300 nats above the rest: P[j,i] as P[i,j] times the ratio of two normalisers is 0 * inf there."""
    student, teacher = tap((1, 40, 1, 16), 1), tap((1, 40, 1, 16), 2)
    student[:, 7] *= (300 * 16**0.5) ** 0.5 / student[:, 7].norm()
    teacher[:, 11] *= (300 * 16**0.5) ** 0.5 / teacher[:, 11].norm()
    assert_exact(
        [student.float().requires_grad_()],
        [teacher.float()],
        1,
        loss=HIGH_SCORES_RELATIVE,
        gradient=HIGH_SCORES_OF_LARGEST,
    )


def test_float16_keeps_small_differences_of_relations():
    """Flat relations, the student's almost the teacher's: P_s - P_t is below 1e-5, and float16 has steps of 6e-8.

    The caller scales the loss so that gradients do not vanish in float16; what is inside the kernel has no such help.
    """
    teacher = [(0.3 * tap((1, 200, 1, 16), 1)).half()]
    student = [(0.999 * teacher[0].double()).half().requires_grad_()]
    loss_scale = 2.0**10
    sums = triton_launch.relation_kl(student, teacher, 1, None)
    (found,) = torch.autograd.grad(loss_scale * sums.sum(), student)
    _, (wanted,) = exact(student, teacher, 1)
    assert (found.double() / loss_scale - wanted).abs().max() <= FLOAT16_GRADIENT_OF_LARGEST * wanted.abs().max()


def test_one_launch_reads_all_relations_where_they_are(monkeypatch):
    launched = []

    def launch(kernel, blocks, num_heads, taps, tensors):
        launched.append([x.data_ptr() for x in taps])
        return original(kernel, blocks, num_heads, taps, tensors)

    original = triton_launch._launch
    monkeypatch.setattr(triton_launch, "_launch", launch)
    student = tap((2, 20, 3, 2, 8), 1).float().requires_grad_().unbind(2)
    teacher = tap((2, 20, 3, 2, 8), 2).float().unbind(2)
    triton_launch.relation_kl(student, teacher, 2, None, SMALL).sum().backward()
    assert launched == [[x.data_ptr() for x in (*student, *teacher)]] * 2


def test_relations_of_different_strides_are_not_copied_either(monkeypatch):
    read = []

    def launch(kernel, blocks, num_heads, taps, tensors):
        read.extend(x.data_ptr() for x in taps)
        return original(kernel, blocks, num_heads, taps, tensors)

    original = triton_launch._launch
    monkeypatch.setattr(triton_launch, "_launch", launch)
    view = tap((2, 20, 3, 2, 8), 1).float().unbind(2)[1].requires_grad_()
    student = [view, tap((2, 20, 2, 8), 2).float().requires_grad_()]
    teacher = taps((2, 20, 2, 8), 5, num_relations=2)
    assert_exact(student, teacher, 2)
    assert set(read) == {x.data_ptr() for x in (*student, *teacher)}


def test_keeps_its_inputs_and_four_numbers_a_row():
    kept = []
    student = taps((2, 20, 3, 8), 1, num_relations=2, requires_grad=True)
    teacher = taps((2, 20, 3, 8), 5, num_relations=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        triton_launch.relation_kl(student, teacher, 3, None, SMALL)
    assert sorted(kept) == sorted([(2, 2, 3, 4, 20), (2, 20, 24), (2, 20, 24)])  # teachers are held as they are


def test_runs_in_inference_mode():
    student, teacher = taps((1, 20, 1, 16), 1), taps((1, 20, 1, 16), 2)
    expected = triton_launch.relation_kl(student, teacher, 1, None, SMALL)
    with torch.inference_mode():
        inside = [x.clone() for x in student], [x.clone() for x in teacher]
        assert torch.equal(triton_launch.relation_kl(*inside, 1, mask((20,), 20), SMALL), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_head_size_up_to_512_has_a_tiling(dtype):
    for student_size, teacher_size in ((1, 1), (16, 64), (64, 65), (129, 64), (256, 300), (512, 512)):
        student, teacher = (torch.empty(1, 1, 4 * size, dtype=dtype) for size in (student_size, teacher_size))
        assert isinstance(triton_launch.default_tiling(student, teacher, 4), Tiling)


def test_refuses_heads_larger_than_any_tiling():
    student, teacher = taps((1, 4, 2, 16), 1), taps((1, 4, 2, 514), 2)
    with pytest.raises(
        ValueError, match=r"num_relation_heads is 2, which makes heads of 514 features; allowed: .* 512"
    ):
        triton_launch.relation_kl(student, teacher, 2, None)


def test_auto_sends_heads_here_that_a_tiling_serves():
    assert {max(by_head_size) for by_head_size in triton_launch.TILINGS.values()} == {LARGEST_TRITON_HEAD}
