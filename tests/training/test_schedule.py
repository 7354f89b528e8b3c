"""The learning rate by budget fraction, against numbers worked by hand."""

import pytest

from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.schedule import learning_rate

MANY_STEPS, LENGTH = 10**12, 32


@pytest.mark.parametrize(
    ("schedule", "fraction", "expected"),
    [
        ("linear", 0.0, 0.0),  # as far as the steps before tell
        ("linear", 0.05, 0.5),
        ("linear", 0.1, 1.0),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
        ("linear", 1.3, 0.0),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("constant", 0.05, 0.5),
        ("constant", 0.9, 1.0),
        ("wsd", 0.05, 0.5),
        ("wsd", 0.8, 1.0),
        ("wsd", 0.9, 0.5),
        ("wsd", 1.0, 0.0),
    ],
)
def test_by_hand(schedule: str, fraction: float, expected: float) -> None:
    recipe = TrainingRecipe(learning_rate=2.0, warmup_fraction=0.1, schedule=schedule, decay_fraction=0.2)
    assert learning_rate(recipe, fraction, MANY_STEPS, LENGTH) == pytest.approx(2.0 * expected)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    recipe = TrainingRecipe(learning_rate=2.0, warmup_fraction=0.0, warmup_min_steps=1)
    assert learning_rate(recipe, 0.0, 0, LENGTH) == 2.0


def test_the_warm_up_has_its_least_number_of_steps_and_no_step_at_rate_zero() -> None:
    """Ten steps of a tenth of the budget each: 6 % of it would be less than one step."""
    recipe = TrainingRecipe(learning_rate=2.0, warmup_fraction=0.06, warmup_min_steps=4, schedule="constant")
    rates = [learning_rate(recipe, step / 10, step, LENGTH) for step in range(10)]
    assert rates == pytest.approx([0.02, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])


def test_a_long_warm_up_ends_where_its_share_of_the_budget_does() -> None:
    recipe = TrainingRecipe(learning_rate=2.0, warmup_fraction=0.2, warmup_min_steps=5, schedule="constant")
    rates = [learning_rate(recipe, step / 100, step, LENGTH) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)  # of the first step's share nothing is known yet
    assert rates[1:20] == pytest.approx([2.0 * (step + 1) / 20 for step in range(1, 20)])
    assert rates[19:] == pytest.approx([2.0] * 81)


def test_a_warm_up_in_tokens() -> None:
    recipe = TrainingRecipe(
        learning_rate=2.0, warmup_tokens=8 * 4 * LENGTH, global_batch_size=4, warmup_min_steps=1, schedule="linear"
    )
    rates = [learning_rate(recipe, 0.0, step, LENGTH) for step in range(10)]
    assert rates == pytest.approx([2.0 * min(1.0, (step + 1) / 8) for step in range(10)])
    assert learning_rate(recipe, 0.5, 50, LENGTH) == pytest.approx(1.0)
