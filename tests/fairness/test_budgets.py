"""docs/fairness.md, clauses 4 to 6, on real runs: each unit ends a run, and only what is charged counts towards it."""

import json
import math
from pathlib import Path

import processes
import pytest
from tiny_study import tiny_study, write_inputs

from kd_megatron.ledger import ACCOUNTS
from kd_megatron.study.effective import run_recipe
from kd_megatron.training.run import pretrain

TOKENS_PER_STEP = 8 * 16
FLOPS = 1e8  # some steps of the dearest arm
NOT_BY_DEFAULT = {"validation", "checkpoint", "set_up", "teacher_for_others"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(recipe's budget, arm) -> (summary, rows of metrics) of a run that is made once."""
    inputs, made = write_inputs(tmp_path_factory.mktemp("inputs")), {}

    def run(arm="minilm", **budget):
        name = json.dumps([arm, budget])
        if name not in made:
            validation = {"at": [1.0], "probe_steps": 1}
            study = tiny_study(inputs, budget={"tokens": None} | budget, validation=validation)
            where = tmp_path_factory.mktemp("run") / "run"
            summary = pretrain(run_recipe(study, arm, 0), arm, 0, where, str(inputs / "teacher"))
            rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
            made[name] = summary, [row for row in rows if "loss" in row]
        return made[name]

    return run


def charged(summary, unit):
    """What the charged accounts spent, added up from the ledger as it was written."""
    accounts = summary["ledger"]["accounts"]
    return sum(accounts[name][unit] for name in summary["budget"]["charge"])


@pytest.mark.parametrize(
    ("budget", "counted"),
    [
        ({"tokens": 5 * TOKENS_PER_STEP}, lambda summary: summary["tokens"]),
        ({"flops": FLOPS}, lambda summary: charged(summary, "flops")),
        ({"hours": 0.1 / 3600}, lambda summary: charged(summary, "seconds") / 3600),
        ({"gpu_hours": 0.1 / 3600}, lambda summary: charged(summary, "device_seconds") / 3600),
    ],
    ids=["tokens", "flops", "hours", "gpu_hours"],
)
def test_every_unit_ends_a_run(runs, budget, counted):
    """At the first step that used it up: the step before had not, and what is over is recorded."""
    ((unit, limit),) = budget.items()
    summary, rows = runs(**budget)
    assert summary["budget"]["unit"] == unit
    assert summary["budget"]["spent"] == pytest.approx(counted(summary))
    assert summary["budget"]["spent"] >= limit
    # The last look at the device is still the student's: it may add to the seconds after the overshoot was taken.
    assert 0.0 <= summary["budget"]["overshoot"] <= summary["budget"]["spent"] - limit
    fractions = [row["budget_fraction"] for row in rows]
    assert fractions == sorted(fractions)
    assert all(fraction < 1.0 for fraction in fractions[:-1])
    assert 1.0 <= fractions[-1] <= summary["budget"]["spent"] / limit


def test_rank_0s_clock_decides_for_all(tmp_path):
    """Ranks whose clocks differ take the same steps at the same rates, and stop together."""
    inputs = write_inputs(tmp_path / "inputs")
    worker = Path(__file__).with_name("clock_worker.py")
    processes.run([str(worker), str(inputs), str(tmp_path)], world_size=2, timeout_seconds=120)
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == second["steps"] > 1
    assert first["rates"] == second["rates"]
    assert 1.0 <= first["own_fraction"] < second["own_fraction"] / 2


def test_what_is_not_charged_ends_no_run(runs):
    """The same FLOPs of the student alone: the teacher and the loss are free, and the run is longer by their share."""
    whole, _ = runs(flops=FLOPS)
    student_alone, _ = runs(flops=FLOPS, charge=["student"])
    per_step = {name: flops * TOKENS_PER_STEP for name, flops in whole["flops_per_token"].items()}
    assert whole["steps"] == math.ceil(FLOPS / sum(per_step[name] for name in ("student", "teacher", "loss")))
    assert student_alone["steps"] == math.ceil(FLOPS / per_step["student"]) > whole["steps"]
    assert student_alone["ledger"]["accounts"]["teacher"]["flops"] > 0  # recorded all the same
    assert set(whole["budget"]["charge"]) == {*ACCOUNTS} - NOT_BY_DEFAULT
    assert whole["ledger"]["accounts"]["checkpoint"]["seconds"] > 0


@pytest.mark.parametrize("arm", ["scratch", "minilm"])
def test_a_dear_objective_completes_its_schedule(runs, arm):
    """The rate comes down to what is left of the budget at the last step, however many steps it was good for."""
    summary, rows = runs(arm, flops=FLOPS)
    start_of_last = (summary["steps"] - 1) / summary["steps"] * summary["budget"]["spent"] / FLOPS
    expected = 3e-3 * (1.0 - start_of_last) / (1.0 - 0.06)
    assert rows[-1]["learning_rate"] == pytest.approx(expected)
    assert runs("scratch", flops=FLOPS)[0]["steps"] > runs("minilm", flops=FLOPS)[0]["steps"]
