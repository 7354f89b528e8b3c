"""The optional backend on liger-kernel: in Triton's interpreter where the package is installed, refused where not."""

import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from tolerances import FLOAT32_GRADIENT_OF_LARGEST, FLOAT32_LOSS_RELATIVE
from vocab_examples import assert_close_to_exact, changed, leaves, rows, student_head, tensors

from kd_megatron.kernels.vocab_kl import liger, vocab_cross_entropy
from kd_megatron.tensors import IGNORED, FactoredLogits

NUM_ROWS = 10

needs_liger = pytest.mark.skipif(
    importlib.util.find_spec(liger.PACKAGE) is None, reason="liger-kernel is not installed (pip install '.[gpu]')"
)


def loss_and_gradients(student, labels, backend, dtype=torch.float32):
    student = leaves(student, dtype)
    loss = vocab_cross_entropy(student, labels, backend)
    return [loss], list(torch.autograd.grad(3.0 * loss, tensors(student)))


@needs_liger
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_float64_definition(with_bias):
    labels, _ = rows(NUM_ROWS)
    student = changed(student_head(NUM_ROWS, with_bias=with_bias), lambda tensor: tensor.detach().float().double())
    exact = loss_and_gradients(student, labels, "reference", torch.float64)
    actual = loss_and_gradients(student, labels, "liger")
    assert_close_to_exact(actual, exact, FLOAT32_LOSS_RELATIVE, FLOAT32_GRADIENT_OF_LARGEST)


@needs_liger
def test_rows_without_a_label_have_no_effect_and_no_gradient_whatever_they_hold():
    labels, _ = rows(NUM_ROWS)
    unused = labels == IGNORED
    student = student_head(NUM_ROWS, requires_grad=False)
    poisoned = replace(student, states=student.states.masked_fill(unused[:, None], math.nan))
    (clean_loss,), clean = loss_and_gradients(student, labels, "liger")
    (loss,), gradients = loss_and_gradients(poisoned, labels, "liger")
    assert loss.item() == clean_loss.item()
    assert all(torch.equal(a, b) for a, b in zip(gradients, clean, strict=True))
    assert torch.all(gradients[0][unused] == 0.0)


@needs_liger
def test_a_weight_behind_frozen_states_gets_its_gradient():
    labels, _ = rows(NUM_ROWS)
    student = leaves(student_head(NUM_ROWS), torch.float32)
    _, (_, expected, _) = loss_and_gradients(student, labels, "liger")
    frozen = FactoredLogits(student.states.detach(), student.weight, student.bias)
    (gradient,) = torch.autograd.grad(3.0 * vocab_cross_entropy(frozen, labels, "liger"), student.weight)
    assert torch.equal(gradient, expected)


def test_absence_of_the_package_is_said(monkeypatch):
    monkeypatch.setattr(liger, "PACKAGE", "liger_kernel_that_is_not_there")
    with pytest.raises(ValueError, match=r"needs the package liger-kernel, which is not installed .*; allowed: 'auto'"):
        vocab_cross_entropy(student_head(NUM_ROWS), rows(NUM_ROWS)[0], "liger")


def test_a_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(liger, "PACKAGE", "torch")  # a package that is there
    with pytest.raises(ValueError, match="backend 'liger' needs tensors on a GPU, not on cpu; allowed: 'auto'"):
        vocab_cross_entropy(student_head(NUM_ROWS), rows(NUM_ROWS)[0], "liger")
