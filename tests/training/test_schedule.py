"""The learning rate by budget fraction, against numbers worked by hand."""

import pytest

from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "fraction", "expected"),
    [
        ("linear", 0.0, 0.0),
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
    ],
)
def test_by_hand(schedule: str, fraction: float, expected: float) -> None:
    recipe = TrainingRecipe(learning_rate=2.0, warmup_fraction=0.1, schedule=schedule)
    assert learning_rate(recipe, fraction) == pytest.approx(2.0 * expected)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert learning_rate(TrainingRecipe(learning_rate=2.0, warmup_fraction=0.0), 0.0) == 2.0
