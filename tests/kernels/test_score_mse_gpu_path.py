"""What `score_mse` does on a GPU alone, followed on a CPU: split factors, blocks of sequences, float32 products."""

import pytest
import torch
from kernel_examples import mask, tap
from tolerances import BF16_GRADIENT_OF_LARGEST, FLOAT32_LOSS_RELATIVE, GRAM_BFLOAT16_LOSS_UNITS

from kd_megatron.kernels.score_mse import closed_form, score_mse

SHAPE = (3, 128, 2, 16)  # [B, L, H, d]
SPREAD = 0.03  # of the student around the teacher: two products of the gradient cancel to about this share


@pytest.fixture
def bmm_with_wide_results(monkeypatch):
    """CPUs have no product of narrow factors with a float32 result: each is widened, which is exact, as on a GPU."""
    bmm = torch.bmm

    def wide_bmm(left, right, out_dtype=None):
        if out_dtype is None:
            return bmm(left, right)
        assert left.dtype == right.dtype == torch.bfloat16
        return bmm(left.to(out_dtype), right.to(out_dtype))

    monkeypatch.setattr(torch, "bmm", wide_bmm)
    monkeypatch.setattr(closed_form, "_factor_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(closed_form, "_blocks", lambda _: [slice(0, 2), slice(2, 4)])


def loss_and_gradients(taps, valid, backend):
    loss = score_mse(*taps, valid=valid, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, taps[:2])


@pytest.mark.parametrize("valid", [None, mask((128, 70, 1), 128)], ids=["no padding", "padding"])
def test_split_factors_keep_the_gradient_near_the_teacher(bmm_with_wide_results, valid):
    teacher = [tap(SHAPE, seed) for seed in (3, 4)]
    student = [x + SPREAD * tap(SHAPE, seed) for x, seed in zip(teacher, (1, 2), strict=True)]
    taps = [*(x.bfloat16().requires_grad_(True) for x in student), *(x.bfloat16() for x in teacher)]
    loss, gradients = loss_and_gradients(taps, valid, "closed_form")
    wide = [*(x.detach().double().requires_grad_(True) for x in taps[:2]), *(x.double() for x in taps[2:])]
    exact_loss, exact = loss_and_gradients(wide, valid, "reference")
    assert loss.item() == pytest.approx(exact_loss.item(), rel=GRAM_BFLOAT16_LOSS_UNITS * 2.0**-24 / SPREAD**2)
    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        error = (gradient.double() - exact_gradient).abs().max()
        assert error <= BF16_GRADIENT_OF_LARGEST * exact_gradient.abs().max()
        assert valid is None or torch.all(gradient[~valid] == 0.0)


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_products_are_in_full_float32_whatever_the_process_allows(monkeypatch, allowed):
    used = []
    bmm = torch.bmm

    def watched_bmm(left, right):
        settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        used.extend(setting.fp32_precision for setting in settings)
        assert torch.backends.cuda.matmul.allow_tf32 is False  # torch raises where its two switches disagree
        return bmm(left, right)

    monkeypatch.setattr(torch, "bmm", watched_bmm)
    taps = [tap(SHAPE, seed).float() for seed in range(4)]
    exact = score_mse(*(x.double() for x in taps), backend="reference").item()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        assert score_mse(*taps, backend="closed_form").item() == pytest.approx(exact, rel=FLOAT32_LOSS_RELATIVE)
        assert torch.get_float32_matmul_precision() == allowed  # as it was
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(used) == {"ieee"}


@pytest.mark.parametrize("library", ["cuda", "mkldnn"])
def test_the_switch_of_one_library_is_put_back(library):
    """Where it was used, torch refuses to name the precision of the process: a clash of its own."""
    setting = getattr(torch.backends, library).matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "tf32"
        taps = [tap(SHAPE, seed).float() for seed in range(4)]
        exact = score_mse(*(x.double() for x in taps), backend="reference").item()
        assert score_mse(*taps, backend="closed_form").item() == pytest.approx(exact, rel=FLOAT32_LOSS_RELATIVE)
        assert setting.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        setting.fp32_precision = before
