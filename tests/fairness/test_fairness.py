"""docs/fairness.md, clauses 1 and 2: planted differences between arms are refused, allowed ones are named."""

import pytest

from kd_megatron.errors import RecipeError
from kd_megatron.recipe import StudyRecipe, arms
from kd_megatron.study import fairness


def study(minilm=None, allow=(), **changes):
    return StudyRecipe.model_validate(
        {
            "kind": "study",
            "name": "s",
            "data": {"shards": [{"path": "data"}]},
            "student": {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
            "teacher": {"path": "teacher"},
            "arms": {
                "scratch": {"objective": "scratch"},
                "minilm": {"objective": "minilm", "num_relation_heads": 4, **(minilm or {})},
            },
            "budget": {"flops": 1e12},
            "allow_difference": list(allow),
            **changes,
        }
    )


def test_arms_that_differ_in_the_objective_alone_are_fair():
    assert fairness.check(study()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.learning_rate", 5e-4),
        ("training.activation_checkpointing", True),
        ("training.warmup_fraction", 0.12),
        ("training.precision", "fp32"),
        ("training.ds_config", "zero2"),
        ("student.hidden_dropout", 0.1),
        ("student.initialise.method", "teacher_layers"),
        ("data.sequence_length", 256),
        ("data.mask_fraction", 0.3),
        ("budget.flops", 2e12),
        ("budget.charge", ["student"]),
        ("validation.probe_steps", 7),
    ],
)
def test_a_planted_difference_is_refused_and_named(key, value):
    with pytest.raises(RecipeError) as refused:
        fairness.check(study({key: value}))
    assert f"arm minilm overrides {key}" in str(refused.value)
    assert "allow_difference" in str(refused.value)


def test_a_kernel_of_another_backend_in_one_arm_is_refused_unless_allowed():
    with pytest.raises(RecipeError, match="scratch: auto, minilm: reference"):
        fairness.check(study({"backend": "reference"}))
    (difference,) = fairness.check(study({"backend": "reference"}, allow=["backend"]))
    assert (difference.key, difference.values) == ("backend", {"scratch": "auto", "minilm": "reference"})


def test_an_allowed_difference_is_applied_and_named():
    allowed = study({"training.learning_rate": 5e-4}, allow=["training.learning_rate"])
    (difference,) = fairness.check(allowed)
    assert difference.key == "training.learning_rate"
    assert difference.values == {"scratch": 1e-3, "minilm": 5e-4}
    assert arms.resolve_arm(allowed, "minilm").training.learning_rate == 5e-4
    assert arms.resolve_arm(allowed, "scratch").training.learning_rate == 1e-3


def test_a_section_may_be_allowed_as_a_whole():
    recipe = study({"training.learning_rate": 5e-4, "training.warmup_fraction": 0.1}, allow=["training"])
    assert [difference.key for difference in fairness.check(recipe)] == [
        "training.learning_rate",
        "training.warmup_fraction",
    ]


def test_an_override_that_changes_nothing_is_no_difference():
    assert fairness.check(study({"training.learning_rate": 1e-3}, allow=["training.learning_rate"])) == []


def test_allowing_one_key_allows_no_other():
    with pytest.raises(RecipeError, match=r"training\.warmup_fraction"):
        fairness.check(study({"training.warmup_fraction": 0.1}, allow=["training.learning_rate"]))


def test_another_budget_unit_replaces_the_studys():
    recipe = arms.resolve_arm(study({"budget.tokens": 1e6}, allow=["budget"]), "minilm")
    assert (recipe.budget.unit, recipe.budget.limit) == ("tokens", 1e6)


@pytest.mark.parametrize("key", ["seeds.0", "arms.scratch", "name.x"])
def test_what_belongs_to_the_study_is_no_arms_to_change(key):
    with pytest.raises(RecipeError, match="belongs to the whole study"):
        fairness.check(study({key: 1}, allow=["training"]))


def test_an_allowance_of_an_unknown_key_names_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean 'training.learning_rate'\?"):
        fairness.check(study(allow=["training.learning_rat"]))


def test_an_override_is_validated():
    with pytest.raises(RecipeError, match=r"arm minilm: .*training\.learning_rate"):
        fairness.check(study({"training.learning_rate": -1.0}, allow=["training"]))
    with pytest.raises(RecipeError, match=r"unknown key training\.learning_rte"):
        fairness.check(study({"training.learning_rte": 1.0}, allow=["training"]))


def test_an_unknown_option_of_an_objective_is_refused():
    with pytest.raises(RecipeError, match="num_relation_heads"):
        fairness.check(study({"num_relation_head": 4}))


def test_an_unknown_arm_names_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean 'minilm'\?"):
        arms.resolve_arm(study(), "minillm")


def test_a_resolved_arm_stands_alone():
    resolved = arms.resolve_arm(study({"training.learning_rate": 5e-4}, allow=["training"]), "minilm")
    assert resolved.arms == {"minilm": {"objective": "minilm", "num_relation_heads": 4}}
