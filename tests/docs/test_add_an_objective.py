"""The objective in docs/add_an_objective.md is real: it parses, counts, sums and refuses as the page says."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kd_megatron.config import validate
from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.tensors import Batch, ModelShape, Taps

PAGE = Path(__file__).resolve().parents[2] / "docs/add_an_objective.md"
STUDENT = ModelShape(num_layers=1, hidden_size=2, num_attention_heads=1, vocab_size=7)
TEACHER = ModelShape(num_layers=3, hidden_size=2, num_attention_heads=1, vocab_size=7)


@pytest.fixture(scope="module")
def page() -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    module = ModuleType("add_an_objective")
    exec(compile(code, str(PAGE), "exec"), vars(module))
    return module


def build(page: ModuleType, **options: object):
    parsed = validate(page.LastHiddenOptions, {"objective": "last_hidden", **options}, where="arms.x")
    return page.LastHidden(parsed, STUDENT, TEACHER)


def test_it_sums_over_real_tokens_and_counts_them(page):
    objective = build(page, weight=2.0)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    mask = torch.tensor([[True, True, False]])
    batch = Batch(ids, ids, mask, ids[:, :1], ids[:, :1], ids[:, 0])
    student = Taps(hidden={1: torch.tensor([[[1.0, 2.0], [3.0, 4.0], [50.0, 60.0]]])})
    teacher = Taps(hidden={3: torch.tensor([[[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])})
    assert objective(student, teacher, batch)["hidden"] == 2.0**2 + 3.0**2
    assert objective.counts(batch)["hidden"] == 2 * 2
    assert objective.weights == {"hidden": 2.0}
    assert objective.flops(length=3, num_masked=1) > 0


def test_it_asks_for_what_it_reads(page):
    objective = build(page)
    assert objective.needs_student.hidden == (1,)
    assert objective.needs_teacher.hidden == (3,)


def test_it_refuses_what_does_not_fit(page):
    with pytest.raises(RecipeError, match="did you mean 'weight'"):
        build(page, wieght=2.0)
    options = page.LastHiddenOptions(objective="last_hidden")
    with pytest.raises(ModelError, match="equal hidden sizes"):
        page.LastHidden(options, STUDENT, ModelShape(3, 4, 1, 7))
    with pytest.raises(ModelError, match="without a teacher"):
        page.LastHidden(options, STUDENT, None)
