"""The chunked backend: exactness over chunks and blocks, the promise, what it works for, and what it allocates."""

import math

import psutil
import pytest
import torch
from recording import new_buffers_hold_nan, record
from tolerances import (
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
    VOCAB_BFLOAT16_FACTORS_OF_LARGEST,
    VOCAB_PEAKED_GRADIENT_OF_LARGEST,
    VOCAB_PEAKED_LOSS_RELATIVE,
    VOCAB_RESIDENT_BYTES,
)
from vocab_examples import (
    assert_close_to_exact,
    changed,
    combined,
    head,
    leaves,
    rows,
    student_head,
    teacher_head,
    tensors,
)

from kd_megatron.kernels.vocab_kl import chunked, products, vocab_cross_entropy, vocab_kl
from kd_megatron.kernels.vocab_kl.block import Softmaxes
from kd_megatron.tensors import FactoredLogits

TEMPERATURE = 2.5
WEIGHTS = (0.75, 1.5)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 32)
    monkeypatch.setattr(chunked, "CPU_BLOCK_ROWS", 5)


def losses_and_gradients(student, teacher, labels, kl_rows, temperature, backend, dtype, weights=WEIGHTS):
    student, teacher = leaves(student, dtype), changed(teacher, lambda tensor: tensor.to(dtype))
    losses = vocab_kl(student, teacher, labels, temperature, kl_rows, weights, backend)
    return list(losses), list(torch.autograd.grad(combined(losses, weights), tensors(student)))


def rounded_exactly(logits, dtype):
    """The values that ``logits`` have in ``dtype``, in float64."""
    return changed(logits, lambda tensor: tensor.detach().to(dtype).double())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
@pytest.mark.parametrize("num_rows", [1, 16, 32, 33, 127, 128, 200])
def test_equals_the_float64_definition(num_rows, temperature, dtype):
    labels, kl_rows = rows(num_rows, vocab_size=97)
    student, teacher = (
        rounded_exactly(head(num_rows, size, seed, 97, scale=0.5), dtype) for size, seed in ((24, 1), (40, 2))
    )
    exact, actual = (
        losses_and_gradients(student, teacher, labels, kl_rows, temperature, backend, backend_dtype)
        for backend, backend_dtype in (("reference", torch.float64), ("chunked", dtype))
    )
    if dtype == torch.float64:
        assert_close_to_exact(actual, exact, REORDERED_FLOAT64_RELATIVE, REORDERED_FLOAT64_RELATIVE)
    else:
        assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, FLOAT32_GRADIENT_OF_LARGEST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_float64_definition_at_its_own_chunk_size(dtype):
    num_rows = 2 * chunked.CHUNK_ROWS + 37
    labels, kl_rows = rows(num_rows, vocab_size=523)
    student, teacher = (
        rounded_exactly(head(num_rows, size, seed, 523, scale=0.3), dtype) for size, seed in ((24, 1), (40, 2))
    )
    exact, actual = (
        losses_and_gradients(student, teacher, labels, kl_rows, TEMPERATURE, backend, backend_dtype)
        for backend, backend_dtype in (("reference", torch.float64), ("chunked", dtype))
    )
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, FLOAT32_GRADIENT_OF_LARGEST)


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_logits_of_seventy_are_as_exact_as_in_the_definition(temperature):
    labels, kl_rows = rows(64)
    student, teacher = (
        rounded_exactly(head(64, size, seed, scale=10.0), torch.float32) for size, seed in ((5, 1), (7, 2))
    )
    assert student.dense().abs().max() > 70
    assert teacher.dense().abs().max() > 70
    exact, actual, float32_definition = (
        losses_and_gradients(student, teacher, labels, kl_rows, temperature, backend, dtype)
        for backend, dtype in (("reference", torch.float64), ("chunked", torch.float32), ("reference", torch.float32))
    )
    for result in (actual, float32_definition):
        assert_close_to_exact(result, exact, VOCAB_PEAKED_LOSS_RELATIVE, VOCAB_PEAKED_GRADIENT_OF_LARGEST)


@pytest.mark.usefixtures("small_chunks")
def test_strided_states_are_taken_as_they_are():
    labels, kl_rows = rows(70)
    student, teacher = student_head(70), teacher_head(70)
    wide = torch.stack([student.states.detach(), student.states.detach()], dim=1)
    strided = FactoredLogits(wide[:, 0], student.weight, student.bias)
    assert not strided.states.is_contiguous()
    for a, b in zip(
        vocab_kl(student, teacher, labels, 1.0, kl_rows), vocab_kl(strided, teacher, labels, 1.0, kl_rows), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_every_element_read_was_written(temperature):
    labels, kl_rows = rows(70)
    student, teacher = student_head(70), teacher_head(70)
    clean = losses_and_gradients(student, teacher, labels, kl_rows, temperature, "chunked", torch.float32)
    with new_buffers_hold_nan():
        poisoned = losses_and_gradients(student, teacher, labels, kl_rows, temperature, "chunked", torch.float32)
    for kind in range(2):
        assert all(torch.equal(a, b) for a, b in zip(clean[kind], poisoned[kind], strict=True))


def test_bfloat16_products_of_a_gpu(monkeypatch):
    """A GPU sums products of bfloat16 in float32; here the product is done by hand, all around it is the GPU's path."""

    mm = torch.mm

    def wide_mm(left, right, out_dtype=None, *, out):
        return mm(left, right, out=out) if out_dtype is None else addmm(0.0, left, right, out_dtype, out)

    def addmm(total, left, right, out_dtype, out):
        assert left.dtype == right.dtype == torch.bfloat16
        assert out.dtype == out_dtype == torch.float32
        return out.copy_(total + left.to(out_dtype) @ right.to(out_dtype))

    labels, kl_rows = rows(70)
    student, teacher = (rounded_exactly(head, torch.bfloat16) for head in (student_head(70), teacher_head(70)))
    exact = losses_and_gradients(student, teacher, labels, kl_rows, TEMPERATURE, "reference", torch.float64)
    monkeypatch.setattr(products, "factors_dtype", lambda logits, dtype: torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "mm", wide_mm)
    actual = losses_and_gradients(student, teacher, labels, kl_rows, TEMPERATURE, "chunked", torch.bfloat16)
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, VOCAB_BFLOAT16_FACTORS_OF_LARGEST)


# --- the promise ---


def use(factors, weights=WEIGHTS, backend="chunked"):
    student, teacher = student_head(20), teacher_head(20)
    labels, kl_rows = rows(20)
    losses = vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows, weights, backend)
    return torch.autograd.grad(combined(losses, factors), tensors(student))


@pytest.mark.parametrize("factor", [1.0, -3.0, 1e-6, 0.0])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0), (0.0, 2.0), (1e4, 1e-3), (0.0, 0.0)])
def test_sums_used_as_promised_have_the_gradient_of_the_definition(factor, weights):
    factors = (factor * weights[0], factor * weights[1])
    actual, exact = use(factors, weights), use(factors, weights, "reference")
    assert_close_to_exact(([], actual), ([], exact), 0.0, REORDERED_FLOAT64_RELATIVE)


@pytest.mark.parametrize(
    ("factors", "weights"),
    [((1.0, 1.0), WEIGHTS), ((1.0, 0.0), WEIGHTS), ((0.0, 1.0), (1.0, 0.0)), ((1.0, 0.0), (0.0, 0.0))],
)
def test_sums_used_otherwise_are_an_error_and_not_a_wrong_gradient(factors, weights):
    with pytest.raises(ValueError, match=r"gradient_weights is .* their gradients are .*; allowed: gradients in that"):
        use(factors, weights)
    assert len(use(factors, weights, "reference")) == 3


def test_a_gradient_that_is_not_a_number_is_handed_on():
    assert all(gradient.isnan().all() for gradient in use((math.nan, math.nan)))


# --- the backward ---


def test_backward_twice_gives_the_same():
    student, teacher = student_head(20), teacher_head(20)
    labels, kl_rows = rows(20)
    loss = combined(vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows, WEIGHTS), WEIGHTS)
    first = torch.autograd.grad(3.0 * loss, tensors(student), retain_graph=True)
    second = torch.autograd.grad(3.0 * loss, tensors(student))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backward_is_of_the_first_order_only():
    student, teacher = student_head(20), teacher_head(20)
    labels, _ = rows(20)
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = factor * sum(vocab_kl(student, teacher, labels, TEMPERATURE))
    (gradient,) = torch.autograd.grad(loss, student.states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# A vocabulary, hidden size and number of rows that no other size of these tests equals.
ROWS, HIDDEN, VOCAB = 611, 24, 1009


def recorded(needed=(True, True, True), num_rows=ROWS, backend="chunked", dtype=torch.float32, teacher=True):
    """The recording of losses and, where anything is needed, the backward; and the gradients."""
    labels, kl_rows = rows(num_rows, VOCAB)
    student = changed(head(num_rows, HIDDEN, 1, VOCAB), lambda tensor: tensor.to(dtype))
    for tensor, need in zip(tensors(student), needed, strict=True):
        tensor.requires_grad_(need)
    taught = changed(head(num_rows, HIDDEN + 1, 2, VOCAB), lambda tensor: tensor.to(dtype))

    def compute():
        if teacher:
            loss = sum(vocab_kl(student, taught, labels, TEMPERATURE, kl_rows, backend=backend))
        else:
            loss = vocab_cross_entropy(student, labels, backend)
        if any(needed):
            loss.backward()

    return record(compute), [tensor.grad for tensor in tensors(student)]


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_what_needs_a_gradient_is_worked_for(needed):
    recording, gradients = recorded(needed)
    _, all_gradients = recorded()
    assert [gradient is not None for gradient in gradients] == list(needed)
    for gradient, expected in zip(gradients, all_gradients, strict=True):
        assert gradient is None or torch.equal(gradient, expected)
    assert ((VOCAB, HIDDEN) in recording.shapes) == needed[1]  # no view has that shape


@pytest.mark.parametrize(("requires_grad", "context"), [(False, torch.enable_grad), (True, torch.no_grad)])
def test_without_a_need_no_gradient_is_made(monkeypatch, requires_grad, context):
    def refuse(*_):
        raise AssertionError("work for a gradient")

    student, teacher = student_head(20, requires_grad=requires_grad), teacher_head(20)
    labels, kl_rows = rows(20)
    expected = vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows)
    monkeypatch.setattr(Softmaxes, "put_gradient", refuse)
    monkeypatch.setattr(products.Gradient, "add", refuse)
    with context():
        losses = vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows)
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected]


# --- memory ---


@pytest.mark.parametrize("teacher", [True, False], ids=["both losses", "cross-entropy alone"])
def test_never_makes_the_logits_of_all_rows(teacher):
    recording, _ = recorded(teacher=teacher)
    sizes = {size for shape in recording.shapes if VOCAB in shape for size in shape}
    assert sizes <= {VOCAB, HIDDEN, HIDDEN + 1, *range(chunked.CHUNK_ROWS + 1)}
    of_reference, _ = recorded(backend="reference", teacher=teacher)
    assert (ROWS, VOCAB) in of_reference.shapes


def test_two_chunks_of_logits_and_a_block_are_alive_at_most():
    recording, gradients = recorded()
    padded = -(-VOCAB // products.ROW_ALIGNMENT) * products.ROW_ALIGNMENT
    workspaces = (2 * chunked.CHUNK_ROWS + chunked.CPU_BLOCK_ROWS) * padded * 4
    num_gradient_bytes = sum(gradient.nbytes for gradient in gradients)
    per_row_and_chunk = 64 * ROWS + 3 * chunked.CHUNK_ROWS * (2 * HIDDEN + 1) * 4 + 4 * VOCAB
    assert workspaces < recording.peak_bytes <= workspaces + num_gradient_bytes + per_row_and_chunk


def test_memory_grows_by_gradients_alone_with_rows():
    """Nothing grows with N * V: three times the rows cost three times the gradient of states and numbers per row."""
    few, many = (recorded(num_rows=num_rows)[0] for num_rows in (ROWS, 3 * ROWS))
    assert many.largest_bytes == few.largest_bytes
    assert many.peak_bytes - few.peak_bytes <= 2 * ROWS * (HIDDEN * 4 + 64)


def test_peak_is_a_third_of_the_definition_at_2400_rows():
    peaks = [recorded(num_rows=2400, backend=backend)[0].peak_bytes for backend in ("reference", "chunked")]
    assert peaks[1] * 3 <= peaks[0]


def test_memory_does_not_creep_when_the_number_of_rows_varies():
    """Resident memory over 200 calls. It moves by 50 MiB when logits of all rows are made, of a new size each time."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (changed(head(700, size, 1, 2003), torch.Tensor.float) for size in (HIDDEN, HIDDEN + 1))
    student.weight.requires_grad_(True)
    labels, _ = rows(700, 2003)
    process, resident = psutil.Process(), []
    for _ in range(200):
        num_rows = int(torch.randint(1, 700, (), generator=generator))
        part, taught = (FactoredLogits(x.states[:num_rows], x.weight, x.bias) for x in (student, teacher))
        sum(vocab_kl(part, taught, labels[:num_rows], TEMPERATURE)).backward()
        student.weight.grad = None
        resident.append(process.memory_info().rss)
    settled = resident[20:]
    assert max(settled) - min(settled) <= VOCAB_RESIDENT_BYTES
