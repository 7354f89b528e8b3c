"""Attention without flash-attn, and clear words where that is asked for and cannot run."""

import sys

import pytest
import torch

from kd_megatron.errors import ModelError
from kd_megatron.models.layers import attention


def test_sdpa_is_softmax_of_scaled_scores_without_padding() -> None:
    queries, keys, values = (torch.randn(2, 6, 3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., 4:] = False
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / 2.0
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = torch.einsum("bhij,bjhd->bihd", weights, values)
    torch.testing.assert_close(attention("sdpa")(queries, keys, values, mask, 0.0), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_flash_without_a_gpu_is_refused() -> None:
    with pytest.raises(ModelError, match="without a GPU"):
        attention("flash")


def test_flash_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ModelError, match="flash-attn cannot be imported"):
        attention("flash")
