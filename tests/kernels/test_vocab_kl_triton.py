"""What is particular to the Triton kernels over the vocabulary: tiles, chunks, launches, moving maxima, offsets.

test_vocab_kl.py and test_vocab_topk_kl.py hold them, with the tiles they ship with, to what every backend must do. Here
tiles and chunks are so small that few rows and tokens have many, and an end that fills none.

Shapes: N rows, C rows of a chunk, D hidden size, V vocabulary, k tokens kept.
"""

from dataclasses import replace

import pytest
import torch
from recording import new_buffers_hold_nan
from tolerances import (
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
    VOCAB_BFLOAT16_FACTORS_OF_LARGEST,
    VOCAB_PEAKED_GRADIENT_OF_LARGEST,
    VOCAB_PEAKED_LOSS_RELATIVE,
)
from vocab_examples import assert_close_to_exact, changed, combined, head, leaves, rows, tensors, top_of

from kd_megatron.kernels import door
from kd_megatron.kernels.vocab_kl import products, vocab_cross_entropy, vocab_kl, vocab_topk_kl
from kd_megatron.tensors import IGNORED, TopLogits

pytest.importorskip("triton")

from kd_megatron.kernels.vocab_kl import triton_launch
from kd_megatron.kernels.vocab_kl.block import Use
from kd_megatron.kernels.vocab_kl.cost import COSTS

TEMPERATURE = 2.5
WEIGHTS = (0.75, 1.5)
NUM_ROWS, VOCAB_SIZE = 11, 97
LOSSES = ("cross-entropy", "divergence", "top 1", "top 5", "top 97")

every_loss = pytest.mark.parametrize("loss", LOSSES)
both_temperatures = pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])


@pytest.fixture
def small_tiles(monkeypatch):
    """Four tiles of a row, the last not full, and three chunks, the last short."""
    monkeypatch.setattr(triton_launch, "TILE", 32)
    monkeypatch.setattr(triton_launch, "TILE_OF_BOTH", 32)
    monkeypatch.setattr(triton_launch, "MOST_CHUNK_ROWS", 4)
    monkeypatch.setattr(triton_launch, "CHUNK_ALIGNMENT", 2)


def example(dtype=torch.float64, num_rows=NUM_ROWS, vocab_size=VOCAB_SIZE, scale=0.5, with_bias=True):
    """Heads of both models that are exact in ``dtype``."""
    made = [head(num_rows, size, seed, vocab_size, with_bias, scale=scale) for size, seed in ((24, 1), (40, 2))]
    return [changed(logits, lambda tensor: tensor.to(dtype).double()) for logits in made]


def results(loss, heads, temperature, backend, dtype=torch.float64, weights=WEIGHTS, needed=(True, True, True)):
    """Losses and gradients, of both sums or the cross-entropy alone; a teacher's known tokens are exact in float32."""
    num_rows, vocab_size = heads[0].states.shape[0], heads[0].weight.shape[0]
    labels, kl_rows = rows(num_rows, vocab_size)
    student = leaves(heads[0], dtype)
    wanted = [tensor.requires_grad_(need) for tensor, need in zip(tensors(student), needed, strict=False)]
    if loss == "cross-entropy":
        losses = (torch.zeros(()), vocab_cross_entropy(student, labels, backend))
        weights = (0.0, 1.0)
    elif loss == "divergence":
        teacher = changed(heads[1], lambda tensor: tensor.to(dtype))
        losses = vocab_kl(student, teacher, labels, temperature, kl_rows, weights, backend)
    else:
        known = top_of(heads[1], min(int(loss.removeprefix("top ")), vocab_size), temperature)
        wide = dtype if dtype == torch.float64 else torch.float32
        known = TopLogits(
            known.log_probabilities.float().to(wide), known.token_ids, known.log_rest.float().to(wide), temperature
        )
        losses = vocab_topk_kl(student, known, labels, kl_rows, weights, backend)
    leaves_wanted = [tensor for tensor in wanted if tensor.requires_grad]
    return [loss.detach() for loss in losses], list(torch.autograd.grad(combined(losses, weights), leaves_wanted))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@both_temperatures
@every_loss
def test_equals_the_float64_definition_over_many_tiles_and_chunks(loss, temperature, dtype):
    heads = example(dtype)
    exact = results(loss, heads, temperature, "reference")
    actual = results(loss, heads, temperature, "triton", dtype)
    if dtype == torch.float64:
        assert_close_to_exact(actual, exact, REORDERED_FLOAT64_RELATIVE, REORDERED_FLOAT64_RELATIVE)
    else:
        assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, FLOAT32_GRADIENT_OF_LARGEST)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("vocab_size", [1, 5, 32, 33, 64, 65])
@pytest.mark.parametrize("loss", ["cross-entropy", "divergence", "top 1"])
def test_any_vocabulary_fits_the_tiles(loss, vocab_size):
    heads = example(num_rows=3, vocab_size=vocab_size)
    exact, actual = (results(loss, heads, TEMPERATURE, backend) for backend in ("reference", "triton"))
    assert [x.item() for x in actual[0]] == pytest.approx([x.item() for x in exact[0]], rel=REORDERED_FLOAT64_RELATIVE)
    for gradient, expected in zip(actual[1], exact[1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=REORDERED_FLOAT64_RELATIVE)


@pytest.mark.usefixtures("small_tiles")
@every_loss
def test_without_a_bias(loss):
    heads = example(with_bias=False)
    exact, actual = (results(loss, heads, TEMPERATURE, backend) for backend in ("reference", "triton"))
    assert_close_to_exact(actual, exact, REORDERED_FLOAT64_RELATIVE, REORDERED_FLOAT64_RELATIVE)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 2.0), (1e4, 1e-3), (0.0, 0.0)])
@pytest.mark.parametrize("loss", ["divergence", "top 5"])
def test_every_promise_has_the_gradient_of_the_definition(loss, weights):
    heads = example(num_rows=5)
    exact, actual = (results(loss, heads, TEMPERATURE, backend, weights=weights) for backend in ("reference", "triton"))
    assert_close_to_exact(actual, exact, REORDERED_FLOAT64_RELATIVE, REORDERED_FLOAT64_RELATIVE)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("direction", ["up", "down"])
@both_temperatures
@pytest.mark.parametrize("loss", ["cross-entropy", "divergence", "top 5"])
def test_maxima_that_move_from_tile_to_tile(loss, temperature, direction):
    """Logits climb from -70 to 70 along a row, or fall; those of the teacher at another pace."""
    student, teacher = example(torch.float32, num_rows=5, scale=0.3)
    climb = torch.linspace(-70.0, 70.0, VOCAB_SIZE).double()
    climb = climb if direction == "up" else climb.flip(0)
    heads = [
        replace(student, bias=climb),
        replace(teacher, bias=(climb.sign() * climb.abs() ** 1.5 / 70**0.5).float().double()),
    ]
    assert heads[0].dense().abs().max() > 70
    exact = results(loss, heads, temperature, "reference")
    actual = results(loss, heads, temperature, "triton", torch.float32)
    assert_close_to_exact(actual, exact, VOCAB_PEAKED_LOSS_RELATIVE, VOCAB_PEAKED_GRADIENT_OF_LARGEST)


@pytest.mark.usefixtures("small_tiles")
@both_temperatures
@every_loss
def test_every_element_read_was_written(loss, temperature):
    """The gaps between rows and behind the bias too."""
    heads = example(torch.float32)
    clean = results(loss, heads, temperature, "triton", torch.float32)
    with new_buffers_hold_nan():
        poisoned = results(loss, heads, temperature, "triton", torch.float32)
    for kind in range(2):
        assert all(torch.equal(a, b) for a, b in zip(clean[kind], poisoned[kind], strict=True))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
@every_loss
def test_only_what_needs_a_gradient_gets_one(loss, needed):
    heads = example()
    _, all_gradients = results(loss, heads, TEMPERATURE, "triton")
    _, (gradient,) = results(loss, heads, TEMPERATURE, "triton", needed=needed)
    assert torch.equal(gradient, all_gradients[needed.index(True)])


@pytest.mark.usefixtures("small_tiles")
@every_loss
def test_bfloat16_products_of_a_gpu(loss, monkeypatch):
    """As in test_vocab_kl_chunked.py: products by hand, all around them is the GPU's path."""

    def addmm(total, left, right, out_dtype, out):
        assert left.dtype == right.dtype == torch.bfloat16
        return out.copy_(total + left.to(out_dtype) @ right.to(out_dtype))

    mm = torch.mm

    def wide_mm(left, right, out_dtype=None, *, out):
        return mm(left, right, out=out) if out_dtype is None else addmm(0.0, left, right, out_dtype, out)

    heads = example(torch.bfloat16)
    exact = results(loss, heads, TEMPERATURE, "reference")
    monkeypatch.setattr(products, "factors_dtype", lambda logits, dtype: torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "mm", wide_mm)
    actual = results(loss, heads, TEMPERATURE, "triton", torch.bfloat16)
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, VOCAB_BFLOAT16_FACTORS_OF_LARGEST)


# --- launches ---


def chunk(num_rows=3, vocab_size=VOCAB_SIZE, row_size=128):
    """Logits [C, V] float32 with a gap after every row, their use, and room for the losses."""
    logits = head(num_rows, 24, 1, vocab_size, scale=0.5).dense().float()
    room = torch.full((num_rows, row_size), torch.nan)
    room[:, :vocab_size] = logits
    use = Use(torch.arange(num_rows) * 7, torch.ones(num_rows, dtype=torch.bool), 1.0, (0.5, 2.0))
    return room[:, :vocab_size], use, torch.empty(2, num_rows)


def test_a_narrow_gradient_is_the_wide_one_with_fewer_digits():
    """The interpreter cuts them off, where a GPU rounds."""
    logits, use, losses = chunk()
    wide, narrow = torch.empty(3, 128)[:, :VOCAB_SIZE], torch.empty(3, 128, dtype=torch.bfloat16)[:, :VOCAB_SIZE]
    for gradient in (wide, narrow):
        triton_launch.launch_cross_entropy(logits, None, use, triton_launch.Results(*losses, gradient))
    assert torch.all((narrow.float() - wide).abs() <= torch.finfo(torch.bfloat16).eps * wide.abs())
    assert wide.abs().max() > 0.5


def test_in_the_place_of_the_logits_the_gradient_is_the_same():
    logits, use, losses = chunk()
    apart = torch.empty(3, 128)[:, :VOCAB_SIZE]
    triton_launch.launch_cross_entropy(logits, None, use, triton_launch.Results(*losses, apart))
    triton_launch.launch_cross_entropy(logits, None, use, triton_launch.Results(*losses, logits))
    assert torch.equal(logits, apart)


def test_offsets_take_64_bits(monkeypatch):
    """The third row begins 2^31 elements after the first: memory that is reserved, but not touched between rows."""
    monkeypatch.setattr(triton_launch, "TILE", 64)
    logits, use, losses = chunk()
    triton_launch.launch_cross_entropy(logits, None, use, triton_launch.Results(*losses, None))
    expected = losses[1].clone()
    far = torch.empty(2**31 + 128).as_strided((3, VOCAB_SIZE), (2**30, 1))
    far.copy_(logits)
    triton_launch.launch_cross_entropy(far, None, use, triton_launch.Results(*losses, far))
    assert torch.equal(losses[1], expected)
    assert torch.all((far.sum(-1)).abs() < 1e-5)  # probabilities less the label's one, twice


@pytest.mark.parametrize(
    ("num_rows", "chunk_rows"), [(0, 64), (1, 64), (64, 64), (65, 128), (4096, 4096), (4097, 2112), (5120, 2560)]
)
def test_chunks_are_of_about_one_size(num_rows, chunk_rows):
    assert triton_launch._backend(torch.empty(num_rows)).chunk_rows == chunk_rows


@pytest.mark.parametrize("loss", ["cross-entropy", "divergence", "top 5"])
def test_a_chunk_is_one_launch_and_losses_alone_have_no_second_pass(loss, monkeypatch, small_tiles):
    launched = []
    launch = triton_launch._launch

    def watched(kernel, tile, logits, arguments, *others, **constants):
        launched.append((kernel.fn.__name__, logits.shape[0], arguments[-1] is not None))
        return launch(kernel, tile, logits, arguments, *others, **constants)

    monkeypatch.setattr(triton_launch, "_launch", watched)
    expected, _ = results(loss, example(), TEMPERATURE, "triton")
    with_gradient, launched[:] = list(launched), []
    labels, kl_rows = rows(NUM_ROWS, VOCAB_SIZE)
    student, teacher = example()
    if loss == "cross-entropy":
        alone = [torch.zeros(()), vocab_cross_entropy(student, labels, "triton")]
    elif loss == "divergence":
        alone = vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows, WEIGHTS, "triton")
    else:
        known = top_of(teacher, 5, TEMPERATURE)
        known = replace(
            known,
            log_probabilities=known.log_probabilities.float().double(),
            log_rest=known.log_rest.float().double(),
        )
        alone = vocab_topk_kl(student, known, labels, kl_rows, WEIGHTS, "triton")
    assert [x.item() for x in alone] == [x.item() for x in expected]
    kernel = {"cross-entropy": "cross_entropy_rows", "divergence": "divergence_rows"}.get(loss, "top_divergence_rows")
    assert with_gradient == [(kernel, num_rows, True) for num_rows in (4, 4, 3)]
    assert launched == [(kernel, num_rows, False) for num_rows in (4, 4, 3)]


def test_rows_that_are_all_ignored_add_nothing_and_have_gradients_of_zero():
    student = leaves(example(torch.float32)[0], torch.float32)
    labels = torch.full((NUM_ROWS,), IGNORED)
    loss = vocab_cross_entropy(replace(student, states=student.states * torch.nan), labels, "triton")
    gradients = torch.autograd.grad(loss, [student.weight, student.bias])
    assert loss.item() == 0.0
    assert all(torch.all(gradient == 0.0) for gradient in gradients)


def test_auto_takes_it_on_a_gpu(monkeypatch):
    """All three doors ask whether a kernel runs; here they are told so."""
    launched = []
    launch = triton_launch._launch
    monkeypatch.setattr(triton_launch, "_launch", lambda *a, **k: launched.append(a[0].fn.__name__) or launch(*a, **k))
    monkeypatch.setattr(door, "triton_runs", lambda tensor: tensor.shape[0] == 3)
    for num_rows in (3, 4):
        heads = example(num_rows=num_rows)
        for loss in ("cross-entropy", "divergence", "top 5"):
            results(loss, heads, 1.0, "auto")
    assert launched == ["cross_entropy_rows", "divergence_rows", "top_divergence_rows"]


def test_a_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    student, teacher = example()
    labels, _ = rows(NUM_ROWS, VOCAB_SIZE)
    with pytest.raises(ValueError, match="backend 'triton' needs tensors on a GPU, not on cpu; allowed: 'auto'"):
        vocab_kl(student, teacher, labels, 1.0, backend="triton")


def test_costs_by_hand():
    """Logits and biases once, the gradient once, exponentials in both passes."""
    logits, bias = torch.empty(3, 128)[:, :VOCAB_SIZE], torch.empty(128, dtype=torch.bfloat16)
    gradient = torch.empty(3, 128, dtype=torch.bfloat16)[:, :VOCAB_SIZE]
    one = {"student": logits, "student_bias": bias, "gradient": gradient}
    assert COSTS["cross_entropy_rows"](one) == (0.0, 2.0 * 3 * 97, 6.0 * 3 * 97 + 256)
    assert COSTS["cross_entropy_rows"]({**one, "gradient": None}) == (0.0, 3.0 * 97, 4.0 * 3 * 97 + 256)
    assert COSTS["cross_entropy_rows"]({**one, "gradient": logits})[2] == 8.0 * 3 * 97 + 256
    both = {**one, "teacher": logits, "teacher_bias": None, "INVERSE_TEMPERATURE": 0.5}
    assert COSTS["divergence_rows"](both) == (0.0, 6.0 * 3 * 97, 10.0 * 3 * 97 + 256)
    assert COSTS["divergence_rows"]({**both, "INVERSE_TEMPERATURE": 1.0})[1] == 4.0 * 3 * 97
    known = {"token_ids": torch.empty(3, 5, dtype=torch.int64), "log_targets": torch.empty(3, 6)}
    top = {**one, **known, "INVERSE_TEMPERATURE": 0.5}
    assert COSTS["top_divergence_rows"](top) == (0.0, 4.0 * 3 * 97, 6.0 * 3 * 97 + 256 + 3 * (5 * 8 + 6 * 4))
