"""Budgets too small for a step, or for the validations, are refused with what would do."""

import math

import pytest
from tiny_study import tiny_study, write_inputs

from kd_megatron.errors import RecipeError
from kd_megatron.planner.plan import plan
from kd_megatron.study.budget_checks import require_enough, step_price, steps_at

STEP_TOKENS = 8 * 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def with_budget(inputs, **budget):
    return tiny_study(inputs, budget={"tokens": None, **budget})


@pytest.mark.parametrize(
    ("budget", "price"),
    [
        ({"tokens": 1e6}, STEP_TOKENS),
        ({"flops": 1e9}, STEP_TOKENS * 1000.0),
        ({"hours": 1.0}, STEP_TOKENS / 64 / 3600),
        ({"gpu_hours": 1.0}, 2 * STEP_TOKENS / 64 / 3600),
    ],
)
def test_a_step_is_priced_in_the_budgets_unit(inputs, budget, price):
    assert step_price(with_budget(inputs, **budget), 1000.0, 64.0, num_devices=2) == pytest.approx(price)


def test_hours_are_not_judged_without_a_speed(inputs):
    recipe = with_budget(inputs, hours=1e-12)
    assert step_price(recipe, 1000.0) is None
    require_enough(recipe, "scratch", 1000.0)


@pytest.mark.parametrize("unit", ["tokens", "flops", "hours", "gpu_hours"])
def test_less_than_a_step_is_refused_and_the_advice_is_enough(inputs, unit):
    price = step_price(with_budget(inputs, **{unit: 1.0}), 1000.0, 64.0)
    require_enough(with_budget(inputs, **{unit: 2 * price}), "minilm", 1000.0, 64.0)
    with pytest.raises(RecipeError, match="one optimizer step of arm minilm costs") as caught:
        require_enough(with_budget(inputs, **{unit: 0.99 * price}), "minilm", 1000.0, 64.0)
    advised = float(caught.value.fix.split(" to ")[1].split()[0])
    assert price <= advised < 1.011 * price


def test_validations_need_steps_of_their_own(inputs):
    validation = {"at": [0.25, 0.5, 0.75, 1.0]}
    three = tiny_study(inputs, budget={"tokens": 3 * STEP_TOKENS}, validation=validation)
    with pytest.raises(RecipeError, match=r"3 optimizer steps.*after steps 1, 2, 3, 3") as caught:
        require_enough(three, "scratch", 1.0)
    advised = float(caught.value.fix.split(" to ")[1].split()[0])
    require_enough(tiny_study(inputs, budget={"tokens": advised}, validation=validation), "scratch", 1.0)


def test_steps_are_those_of_the_training_loop():
    """A fraction is reached after the first step at which steps / (limit / price) is at least as large."""
    limit, price = 20.0, 1.0
    for fraction in (0.0, 0.1, 0.25, 0.33, 0.5, 1.0):
        expected = next(step for step in range(21) if step * price / limit >= fraction - 1e-12)
        assert steps_at([fraction], limit, price) == [expected]
    assert steps_at([1.0], 2.5, 1.0) == [math.ceil(2.5)]


def test_plan_refuses(inputs):
    with pytest.raises(RecipeError, match="one optimizer step"):
        plan(with_budget(inputs, flops=1.0))
    with pytest.raises(RecipeError, match="of its own"):
        plan(with_budget(inputs, tokens=STEP_TOKENS))


def test_processes_that_cannot_share_the_batch_are_refused(inputs, monkeypatch):
    monkeypatch.setattr("kd_megatron.planner.plan._memory", lambda *_: {})  # which takes seconds
    recipe = tiny_study(inputs, training={"micro_batch_size": 8})  # a global batch of 8
    assert plan(recipe, num_processes=4).num_processes == 4
    with pytest.raises(RecipeError, match="global_batch_size 8 on 3 processes"):
        plan(recipe, num_processes=3)
