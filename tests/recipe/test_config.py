"""Recipes: what is wrong is named, with the nearest right thing."""

from pathlib import Path

import pytest
import yaml
from tiny_study import tiny_study

from kd_megatron.errors import RecipeError
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.recipe import CorpusRecipe, StudyRecipe, config


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    raw = tiny_study(tmp_path).model_dump(mode="json", exclude_none=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.hors=1", "unknown key budget.hors; did you mean 'hours'"),
        ("trainin.learning_rate=1", "unknown key trainin; did you mean 'training'"),
        ("data.shards=[{pth: x}]", r"unknown key data\.shards\.0\.pth; did you mean 'path'"),
        ("budget=4", "a budget needs a unit: write budget.UNIT"),
        ("budget.flops=0", "greater than 0"),
        ("budget={}", "exactly one unit"),
        ("budget={hours: 1, tokens: 5}", "exactly one unit"),
        ("budget.charge=[coffee]", "'student'"),
        ("student.num_attention_heads=5", "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ("teacher={}", "exactly one of 'path' and 'train'"),
        ("training.precision=fp8", "'fp32'"),
        ("seeds=[]", "at least 1 item"),
        ("name", "expected: key=value"),
        ("name.x=1", "name is not a section"),
    ],
)
def test_what_is_wrong_is_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config.load(recipe, StudyRecipe, [override])


def test_a_new_unit_replaces_the_recipes_unit(recipe: Path) -> None:
    budget = config.load(recipe, StudyRecipe, ["budget.flops=2e14"]).budget
    assert (budget.unit, budget.limit) == ("flops", 2e14)


def test_all_problems_are_told_at_once(recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        config.load(recipe, StudyRecipe, ["sedes=[1]", "training.lr=1"])
    assert "did you mean 'seeds'" in str(caught.value)
    assert "unknown key training.lr" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "!!python/object/apply:os.system ['true']", "\xff\xfe"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError):
        config.load(path, StudyRecipe)


def test_a_missing_file_lists_the_shipped_recipes() -> None:
    with pytest.raises(RecipeError, match=r"does not exist[\s\S]*recipes/demo.yaml"):
        config.load("recipes/demmo.yaml", StudyRecipe)


def test_a_corpus_takes_one_tokenizer() -> None:
    raw = {"kind": "corpus", "name": "x", "output": "o", "sources": [{"type": "files"}], "tokenizer": {}}
    with pytest.raises(RecipeError, match=r"needs 'paths'[\s\S]*exactly one of 'load' and 'train'"):
        config.validate(CorpusRecipe, raw, "x")


def test_auto_precision_is_decided_once_for_the_whole_recipe(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, training={"precision": "auto"}, teacher={"precision": "auto"})
    resolved = resolve_precision(study)
    assert resolved.training.precision in ("bf16", "fp32")
    assert resolved.teacher is not None
    assert resolved.teacher.precision == resolved.training.precision
    fixed = tiny_study(tmp_path, training={"precision": "bf16"})
    assert resolve_precision(fixed).training.precision == "bf16"
