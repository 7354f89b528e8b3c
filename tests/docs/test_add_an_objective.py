"""docs/add_an_objective.md is followed to the letter: the objective is real, and so is the way to a report.

The steps themselves are read from the page by follow_add_an_objective.py.
"""

import json
import os
import subprocess
import sys
from types import ModuleType

import follow_add_an_objective as follow
import pytest
import torch
import yaml

from kd_megatron import recipe as schema
from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.objectives import registry
from kd_megatron.planner.plan import plan
from kd_megatron.recipe.config import validate
from kd_megatron.tensors import Batch, ModelShape, Taps

STUDENT = ModelShape(num_layers=1, hidden_size=2, num_attention_heads=1, vocab_size=7)
TEACHER = ModelShape(num_layers=3, hidden_size=2, num_attention_heads=1, vocab_size=7)


@pytest.fixture(scope="module")
def page() -> ModuleType:
    module = ModuleType("add_an_objective")
    exec(compile(follow.block("python"), str(follow.PAGE), "exec"), vars(module))
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


def test_with_its_line_in_the_registry_the_recipe_can_be_planned(page, monkeypatch):
    importing, entry = follow.registry_lines()
    module = follow.target("kd_megatron/objectives").removesuffix(".py").replace("/", ".")
    assert importing == f"from {module} import LastHidden, LastHiddenOptions"
    added = eval(f"{{{entry}}}", vars(page))
    monkeypatch.setattr(registry, "OBJECTIVES", registry.OBJECTIVES | added)
    monkeypatch.chdir(follow.ROOT)
    recipe = validate(schema.StudyRecipe, yaml.safe_load(follow.block("yaml")), where="the page's recipe")
    assert follow.target("recipes") == f"recipes/{recipe.name}.yaml"
    planned = plan(recipe)
    assert [entry.arm for entry in planned.arms] == ["scratch", "last_hidden"]
    assert planned.allowed == []
    assert all(entry.steps and entry.steps >= 40 for entry in planned.arms)
    first, second, changed = follow.commands()
    assert [first, second] == [[command, f"recipes/{recipe.name}.yaml"] for command in ("plan", "study")]
    assert changed == [*second, "arms.last_hidden_2={objective: last_hidden, weight: 2.0}"]


@pytest.mark.long
def test_followed_to_the_letter_it_ends_with_a_report(tmp_path):
    """The commands, in a copy of the repository; the text is prepared there too."""
    root = follow.repository(tmp_path)
    first = root / "studies/last_hidden/arms/last_hidden/seed_0/summary.json"
    trained = []
    environment = os.environ | {"PYTHONPATH": str(root)}
    for words in follow.commands():
        command = [sys.executable, "-m", "kd_megatron", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        trained += [first.stat().st_mtime_ns] * first.is_file()
    report = root / "studies/last_hidden/report"
    assert "last_hidden" in (report / "index.html").read_text(encoding="utf-8")
    found = json.loads(first.read_text(encoding="utf-8"))
    assert found["objective"] == "last_hidden"
    assert found["steps"] >= 40
    assert len(trained) == 2, "by the first study, and seen again after the second"
    assert len(set(trained)) == 1, "the second trains the new arm alone"
    changed = [path.name for path in (root / "studies/last_hidden/arms/last_hidden_2").iterdir()]
    assert sorted(changed) == ["seed_0", "seed_1", "seed_2"]
