"""The chunked backend of `vocab_topk_kl`: exactness over chunks and blocks, the promise, and what it allocates."""

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
    top_of,
)

from kd_megatron.kernels.vocab_kl import chunked, products, vocab_kl, vocab_topk_kl
from kd_megatron.kernels.vocab_kl.block import Outcomes
from kd_megatron.kernels.vocab_kl.top_logits import top_logits_of_head
from kd_megatron.tensors import FactoredLogits, TopLogits

TEMPERATURE = 2.5
WEIGHTS = (0.75, 1.5)
both_temperatures = pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 32)
    monkeypatch.setattr(chunked, "CPU_BLOCK_ROWS", 5)


def in_dtype(teacher, dtype):
    return TopLogits(
        teacher.log_probabilities.to(dtype), teacher.token_ids, teacher.log_rest.to(dtype), teacher.temperature
    )


def losses_and_gradients(student, teacher, labels, kl_rows, backend, dtype, weights=WEIGHTS):
    student, teacher = leaves(student, dtype), in_dtype(teacher, max(dtype, torch.float32, key=lambda d: d.itemsize))
    losses = vocab_topk_kl(student, teacher, labels, kl_rows, weights, backend)
    return list(losses), list(torch.autograd.grad(combined(losses, weights), tensors(student)))


def example(num_rows, num_kept, temperature, dtype=torch.float64, vocab_size=97, scale=0.5):
    """Student and teacher that are exact in ``dtype`` and in float32."""
    student = changed(head(num_rows, 24, 1, vocab_size, scale=scale), lambda tensor: tensor.to(dtype).double())
    teacher = top_of(head(num_rows, 40, 2, vocab_size, scale=scale), num_kept, temperature)
    return student, teacher if dtype == torch.float64 else in_dtype(in_dtype(teacher, torch.float32), torch.float64)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@both_temperatures
@pytest.mark.parametrize(("num_rows", "num_kept"), [(1, 1), (32, 5), (33, 96), (200, 16), (70, 97)])
def test_equals_the_float64_definition(num_rows, num_kept, temperature, dtype):
    labels, kl_rows = rows(num_rows, vocab_size=97)
    student, teacher = example(num_rows, num_kept, temperature, dtype)
    exact, actual = (
        losses_and_gradients(student, teacher, labels, kl_rows, backend, backend_dtype)
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
    student, teacher = example(num_rows, 32, TEMPERATURE, dtype, vocab_size=523, scale=0.3)
    exact, actual = (
        losses_and_gradients(student, teacher, labels, kl_rows, backend, backend_dtype)
        for backend, backend_dtype in (("reference", torch.float64), ("chunked", dtype))
    )
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, FLOAT32_GRADIENT_OF_LARGEST)


@both_temperatures
@pytest.mark.parametrize("num_kept", [1, 4, 11])
def test_logits_of_seventy_are_as_exact_as_in_the_definition(temperature, num_kept):
    labels, kl_rows = rows(64)
    student = changed(student_head(64, scale=10.0, requires_grad=False), lambda tensor: tensor.float().double())
    teacher = in_dtype(
        in_dtype(top_of(teacher_head(64, scale=10.0), num_kept, temperature), torch.float32), torch.float64
    )
    assert student.dense().abs().max() > 70
    exact, actual, float32_definition = (
        losses_and_gradients(student, teacher, labels, kl_rows, backend, dtype)
        for backend, dtype in (("reference", torch.float64), ("chunked", torch.float32), ("reference", torch.float32))
    )
    for result in (actual, float32_definition):
        assert_close_to_exact(result, exact, VOCAB_PEAKED_LOSS_RELATIVE, VOCAB_PEAKED_GRADIENT_OF_LARGEST)


@pytest.mark.usefixtures("small_chunks")
def test_strided_inputs_are_taken_as_they_are():
    labels, kl_rows = rows(70)
    student, teacher = student_head(70), top_of(teacher_head(70), 4, 1.0)

    def strided(tensor):
        wide = torch.stack([tensor.detach(), tensor.detach()], dim=-1)[..., 0]
        assert not wide.is_contiguous()
        return wide

    same_student = FactoredLogits(strided(student.states), student.weight, student.bias)
    same_teacher = TopLogits(
        *(strided(x) for x in (teacher.log_probabilities, teacher.token_ids, teacher.log_rest)), 1.0
    )
    losses = vocab_topk_kl(student, teacher, labels, kl_rows)
    assert all(
        torch.equal(a, b)
        for a, b in zip(losses, vocab_topk_kl(same_student, same_teacher, labels, kl_rows), strict=True)
    )


@pytest.mark.usefixtures("small_chunks")
@both_temperatures
def test_every_element_read_was_written(temperature):
    labels, kl_rows = rows(70)
    student, teacher = student_head(70), top_of(teacher_head(70), 4, temperature)
    clean = losses_and_gradients(student, teacher, labels, kl_rows, "chunked", torch.float32)
    with new_buffers_hold_nan():
        poisoned = losses_and_gradients(student, teacher, labels, kl_rows, "chunked", torch.float32)
    for kind in range(2):
        assert all(torch.equal(a, b) for a, b in zip(clean[kind], poisoned[kind], strict=True))


def test_the_teacher_is_not_changed():
    student, teacher = student_head(20), top_of(teacher_head(20), 4, TEMPERATURE)
    before = [x.clone() for x in (teacher.log_probabilities, teacher.token_ids, teacher.log_rest)]
    sum(vocab_topk_kl(student, teacher, rows(20)[0])).backward()
    after = (teacher.log_probabilities, teacher.token_ids, teacher.log_rest)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bfloat16_products_of_a_gpu(monkeypatch):
    """As in test_vocab_kl_chunked.py: the product by hand, all around it is the GPU's path."""

    mm = torch.mm

    def wide_mm(left, right, out_dtype=None, *, out):
        return mm(left, right, out=out) if out_dtype is None else addmm(0.0, left, right, out_dtype, out)

    def addmm(total, left, right, out_dtype, out):
        assert left.dtype == right.dtype == torch.bfloat16
        return out.copy_(total + left.to(out_dtype) @ right.to(out_dtype))

    labels, kl_rows = rows(70, vocab_size=97)
    student, teacher = example(70, 8, TEMPERATURE, torch.bfloat16)
    exact = losses_and_gradients(student, teacher, labels, kl_rows, "reference", torch.float64)
    monkeypatch.setattr(products, "factors_dtype", lambda logits, dtype: torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "mm", wide_mm)
    actual = losses_and_gradients(student, teacher, labels, kl_rows, "chunked", torch.bfloat16)
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, VOCAB_BFLOAT16_FACTORS_OF_LARGEST)


# --- the promise ---


def use(factors, weights=WEIGHTS, backend="chunked"):
    student, teacher = student_head(20), top_of(teacher_head(20), 4, TEMPERATURE)
    labels, kl_rows = rows(20)
    losses = vocab_topk_kl(student, teacher, labels, kl_rows, weights, backend)
    return torch.autograd.grad(combined(losses, factors), tensors(student))


@pytest.mark.parametrize("factor", [1.0, -3.0, 0.0])
@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 0.0), (0.0, 2.0), (1e4, 1e-3)])
def test_sums_used_as_promised_have_the_gradient_of_the_definition(factor, weights):
    factors = (factor * weights[0], factor * weights[1])
    actual, exact = use(factors, weights), use(factors, weights, "reference")
    assert_close_to_exact(([], actual), ([], exact), 0.0, REORDERED_FLOAT64_RELATIVE)


def test_sums_used_otherwise_are_an_error_and_not_a_wrong_gradient():
    with pytest.raises(ValueError, match=r"gradient_weights is .* their gradients are .*; allowed: gradients in that"):
        use((1.0, 1.0))
    assert len(use((1.0, 1.0), backend="reference")) == 3


@pytest.mark.parametrize(("requires_grad", "context"), [(False, torch.enable_grad), (True, torch.no_grad)])
def test_without_a_need_no_gradient_is_made(monkeypatch, requires_grad, context):
    def refuse(*_):
        raise AssertionError("work for a gradient")

    student, teacher = student_head(20, requires_grad=requires_grad), top_of(teacher_head(20), 4, TEMPERATURE)
    labels, kl_rows = rows(20)
    expected = vocab_topk_kl(student, teacher, labels, kl_rows)
    monkeypatch.setattr(Outcomes, "put_gradient", refuse)
    monkeypatch.setattr(products.Gradient, "add", refuse)
    with context():
        losses = vocab_topk_kl(student, teacher, labels, kl_rows)
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected]


# --- memory ---

# A vocabulary, hidden size, number of rows and of tokens kept that no other size of these tests equals.
ROWS, HIDDEN, VOCAB, KEPT = 611, 24, 1009, 13


def recorded(num_rows=ROWS, backend="chunked", num_kept=KEPT):
    """The recording of losses and backward; and the gradients."""
    labels, kl_rows = rows(num_rows, VOCAB)
    student = leaves(head(num_rows, HIDDEN, 1, VOCAB), torch.float32)
    teacher = in_dtype(top_of(head(num_rows, HIDDEN + 1, 2, VOCAB), num_kept, TEMPERATURE), torch.float32)

    def compute():
        sum(vocab_topk_kl(student, teacher, labels, kl_rows, backend=backend)).backward()

    return record(compute), [tensor.grad for tensor in tensors(student)]


def test_never_makes_the_logits_of_all_rows():
    recording, _ = recorded()
    sizes = {size for shape in recording.shapes if VOCAB in shape for size in shape}
    assert sizes <= {VOCAB, HIDDEN, *range(chunked.CHUNK_ROWS + 1)}
    of_reference, _ = recorded(backend="reference")
    assert (ROWS, VOCAB) in of_reference.shapes


def test_one_chunk_of_logits_and_a_block_are_alive_at_most():
    """A teacher out of a cache saves the chunk of its logits."""
    recording, gradients = recorded()
    padded = -(-VOCAB // products.ROW_ALIGNMENT) * products.ROW_ALIGNMENT
    workspaces = (chunked.CHUNK_ROWS + chunked.CPU_BLOCK_ROWS) * padded * 4
    num_gradient_bytes = sum(gradient.nbytes for gradient in gradients)
    per_row_and_chunk = 64 * ROWS + 8 * ROWS * 8 * KEPT + 3 * chunked.CHUNK_ROWS * HIDDEN * 4 + 4 * VOCAB
    assert workspaces < recording.peak_bytes <= workspaces + num_gradient_bytes + per_row_and_chunk


def test_memory_grows_by_gradients_and_what_is_kept_alone():
    few, many = (recorded(num_rows=num_rows)[0] for num_rows in (ROWS, 3 * ROWS))
    assert many.largest_bytes == few.largest_bytes
    assert many.peak_bytes - few.peak_bytes <= 2 * ROWS * (HIDDEN * 4 + 64 + 8 * 8 * KEPT)


def test_memory_does_not_creep_when_the_number_of_rows_varies():
    generator = torch.Generator().manual_seed(0)
    student = changed(head(700, HIDDEN, 1, 2003), torch.Tensor.float)
    teacher = in_dtype(top_of(head(700, HIDDEN + 1, 2, 2003), KEPT, TEMPERATURE), torch.float32)
    student.weight.requires_grad_(True)
    labels, _ = rows(700, 2003)
    process, resident = psutil.Process(), []
    for _ in range(200):
        some = slice(0, int(torch.randint(1, 700, (), generator=generator)))
        part = FactoredLogits(student.states[some], student.weight, student.bias)
        taught = TopLogits(
            teacher.log_probabilities[some], teacher.token_ids[some], teacher.log_rest[some], TEMPERATURE
        )
        sum(vocab_topk_kl(part, taught, labels[some])).backward()
        student.weight.grad = None
        resident.append(process.memory_info().rss)
    settled = resident[20:]
    assert max(settled) - min(settled) <= VOCAB_RESIDENT_BYTES


# --- what a cache keeps, by chunks ---


@both_temperatures
def test_top_logits_of_a_head_are_those_of_its_logits(temperature):
    num_rows = 2 * chunked.CHUNK_ROWS + 38
    teacher = head(num_rows, 24, 2, vocab_size=97)
    folded = FactoredLogits(teacher.states.unflatten(0, (2, -1)), teacher.weight, teacher.bias)
    found, expected = top_logits_of_head(folded, 16, temperature), top_of(teacher, 16, temperature)
    assert found.log_rest.shape == (2, num_rows // 2)
    assert found.token_ids.shape == found.log_probabilities.shape == (2, num_rows // 2, 16)
    assert torch.equal(found.rows().token_ids, expected.token_ids)
    for name in ("log_probabilities", "log_rest"):
        a, b = getattr(found.rows(), name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=REORDERED_FLOAT64_RELATIVE, atol=REORDERED_FLOAT64_RELATIVE)


def test_top_logits_of_no_rows():
    found = top_logits_of_head(head(0, 24, 2, vocab_size=97), 16, 1.0)
    assert (found.token_ids.shape, found.log_rest.shape) == ((0, 16), (0,))


def test_logits_of_bfloat16_are_not_rounded_on_the_way_into_a_cache():
    """With every token kept, bfloat16 models have the losses of their own logits, also under autocast."""
    labels, kl_rows = rows(70, vocab_size=97)
    student, teacher = (
        changed(head(70, size, seed, 97), lambda tensor: tensor.bfloat16()) for size, seed in ((24, 1), (40, 2))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = top_logits_of_head(teacher, 97, TEMPERATURE)
    whole, from_cache = (
        vocab_kl(student, teacher, labels, TEMPERATURE, kl_rows),
        vocab_topk_kl(student, kept, labels, kl_rows),
    )
    for actual, expected in zip(from_cache, whole, strict=True):
        assert actual.item() == pytest.approx(expected.item(), rel=FLOAT32_LOSS_RELATIVE)
    rounded = vocab_topk_kl(student, top_of(teacher, 97, TEMPERATURE), labels, kl_rows)
    assert rounded[0].item() != pytest.approx(whole[0].item(), rel=100 * FLOAT32_LOSS_RELATIVE)
