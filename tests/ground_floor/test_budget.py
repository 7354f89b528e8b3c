"""The ledger's arithmetic."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from kd_megatron.ledger import ACCOUNTS, Ledger
from kd_megatron.recipe import BudgetRecipe


def test_a_nested_clock_charges_its_own_account_alone() -> None:
    ledger = Ledger()
    with ledger.clock("student"):
        time.sleep(0.02)
        with ledger.clock("loss"):
            time.sleep(0.05)
    student, loss = ledger.accounts["student"].seconds, ledger.accounts["loss"].seconds
    assert loss > 0.05
    assert student < loss
    assert ledger.seconds() == pytest.approx(student + loss)


def test_time_is_charged_when_the_block_fails() -> None:
    ledger = Ledger()

    @ledger.clock("teacher")
    def fail() -> None:
        time.sleep(0.01)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert ledger.accounts["teacher"].seconds > 0.01


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"tokens": 1000}, 0.25),
        ({"flops": 80.0}, 0.5),  # student 30 + teacher 10; validation is not charged
        ({"flops": 80.0, "charge": ["student"]}, 30 / 80),
        ({"hours": 2.0}, 0.25),
        ({"gpu_hours": 2.0}, 1.0),
    ],
)
def test_the_unit_and_the_charged_accounts_decide(budget: dict, expected: float) -> None:
    ledger = Ledger(num_devices=4, tokens=250)
    for account, flops in (("student", 30.0), ("teacher", 10.0), ("validation", 100.0)):
        ledger.charge_flops(account, flops)
    for account, seconds in (("student", 1500.0), ("data_wait", 300.0), ("checkpoint", 9999.0)):
        ledger.charge_seconds(account, seconds)
    assert ledger.fraction(BudgetRecipe(**budget)) == pytest.approx(expected)


def test_it_survives_being_written_down() -> None:
    ledger = Ledger(num_devices=2, tokens=5, unique_tokens=4, steps=3, overshoot=0.5)
    for number, account in enumerate(ACCOUNTS):
        ledger.charge_seconds(account, number + 0.25)
        ledger.charge_flops(account, 2.0 * number)
    again = Ledger(num_devices=2)
    again.restore(ledger.to_dict())
    assert again == ledger


def test_a_resume_on_more_devices_spends_the_time_before_on_those_there_were() -> None:
    budget = BudgetRecipe(gpu_hours=1.0)
    alone = Ledger(num_devices=1)
    alone.charge_seconds("student", 1800.0)
    together = Ledger(num_devices=4)
    together.restore(alone.to_dict())
    assert together.num_devices == 4
    assert together.spent(budget) == 0.5
    together.charge_seconds("student", 450.0)
    assert together.spent(budget) == 1.0
    assert together.spent(BudgetRecipe(hours=1.0)) == 0.625


def test_a_ledger_written_before_device_seconds_is_read() -> None:
    ledger = Ledger(num_devices=2)
    ledger.charge_seconds("teacher", 3600.0)
    written = ledger.to_dict()
    for entry in written["accounts"].values():
        del entry["device_seconds"]
    again = Ledger(num_devices=2)
    again.restore(written)
    assert again == ledger


def test_a_clock_waits_for_the_device_at_both_ends() -> None:
    """What the device still does when a clock starts belongs to the account before."""
    events = []
    ledger = Ledger()
    ledger.settle_with(lambda: events.append("wait"))
    with ledger.clock("student"):
        events.append("student")
        with ledger.clock("loss"):
            events.append("loss")
    assert events == ["wait", "student", "wait", "loss", "wait", "wait"]
    assert "_settle" not in ledger.to_dict()


@pytest.mark.parametrize(
    ("budget", "splits"),
    [
        ({"hours": 1}, False),
        ({"hours": 1, "charge": ["student", "loss", "data_wait"]}, True),
        ({"gpu_hours": 1, "charge": ["student"]}, True),
        ({"hours": 1, "charge": ["student", "teacher", "loss", "data_wait", "teacher_for_others"]}, False),
        ({"flops": 1, "charge": ["student"]}, False),
    ],
)
def test_which_budgets_depend_on_how_a_steps_time_is_divided(budget: dict[str, Any], splits: bool) -> None:
    assert BudgetRecipe.model_validate(budget).splits_training_time is splits


def test_flops_are_not_charged_where_they_are_not_counted() -> None:
    charge = ["student", "teacher", "loss", "data_wait", "teacher_for_others"]
    with pytest.raises(ValidationError, match="teacher_for_others would be charged none"):
        BudgetRecipe.model_validate({"flops": 80.0, "charge": charge})
    assert BudgetRecipe.model_validate({"hours": 1.0, "charge": charge}).charge == charge


@pytest.mark.parametrize("account", ["validation", "checkpoint", "set_up"])
@pytest.mark.parametrize("unit", ["hours", "flops"])
def test_what_comes_after_the_last_step_too_cannot_be_charged(unit: str, account: str) -> None:
    with pytest.raises(ValidationError, match=f"{account} cannot be charged: the last of it comes when the budget is"):
        BudgetRecipe.model_validate({unit: 1.0, "charge": ["student", account]})
