"""A schedule of objectives: each phase is the run that its objective would be, and a boundary loses nothing."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_study import tiny_study, write_inputs

from kd_megatron.engine import checkpoint
from kd_megatron.engine.flops import SequenceCost, arm_cost, mean_cost
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.errors import Interrupted, RecipeError
from kd_megatron.files.records import read_metrics
from kd_megatron.recipe import BudgetRecipe, StudyRecipe
from kd_megatron.study import calibration
from kd_megatron.training import loop, setup
from kd_megatron.training.branch import leave
from kd_megatron.training.run import pretrain
from kd_megatron.training.setup import Run, prepare_run

MINILM = {"objective": "minilm", "num_relation_heads": 4}
TINYBERT = {"objective": "tinybert"}
SCRATCH = {"objective": "scratch"}
SCHEDULE = {
    "objective": "schedule",
    "phases": [{"until": 0.4, **SCRATCH}, {"until": 0.7, **TINYBERT}, {"until": 1.0, **MINILM}],
}
ARM = "in_turn"
BOUNDARIES = (8, 14)  # of 20 steps
WEIGHTS, FIRST = "weights.safetensors", "first_moments.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("phases"))


def study(inputs: Path, **changes: Any) -> StudyRecipe:
    training = {"checkpoint_every_steps": 50, "keep_at": [0.35, 0.4, 0.45]} | changes.pop("training", {})
    arms = {"scratch": SCRATCH, "tinybert": TINYBERT, "minilm": MINILM, ARM: SCHEDULE}
    fixed = {"training": training, "student": {"hidden_dropout": 0.1}, "validation": {"at": [0.4, 0.5, 1.0]}}
    return tiny_study(inputs, arms=arms, **fixed, **changes)


def alone(recipe: StudyRecipe, arm: str) -> StudyRecipe:
    return recipe.model_copy(update={"arms": {arm: recipe.arms[arm]}})


def train(recipe: StudyRecipe, directory: Path, inputs: Path, arm: str = ARM) -> dict[str, Any]:
    return pretrain(alone(recipe, arm), arm, 0, directory, str(inputs / "teacher"))


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(study(inputs), directory, inputs)
    return directory


def state(run: Path, step: int, file: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / file)


def rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run) if "loss" in row]


def test_each_phase_has_its_terms_and_the_learning_rate_runs_over_the_whole_budget(finished: Path) -> None:
    terms = [sorted(key for key in row if key.startswith("loss/")) for row in rows(finished)]
    tinybert, minilm = ["loss/attention", "loss/hidden"], ["loss/keys", "loss/queries", "loss/values"]
    assert terms == [["loss/mlm"]] * 8 + [tinybert] * 6 + [minilm] * 6
    rates = [row["learning_rate"] for row in rows(finished)]
    assert rates[4:] == sorted(rates[4:], reverse=True)  # after the warm-up of five steps
    assert rates[:4] == sorted(rates[:4])
    assert min(rates) > 0.0


def test_the_first_phase_is_the_run_of_its_objective_bit_for_bit(inputs: Path, tmp_path: Path, finished: Path) -> None:
    train(study(inputs), tmp_path / "run", inputs, "scratch")
    for file in (WEIGHTS, FIRST):
        one, other = state(tmp_path / "run", BOUNDARIES[0], file), state(finished, BOUNDARIES[0], file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_and_moments_go_over_a_boundary(inputs: Path, finished: Path, tmp_path: Path) -> None:
    """The engine of the second phase, as it is before its first step."""
    begun = tmp_path / "run"
    keep_until(finished, begun, BOUNDARIES[0])
    run = prepare_run(alone(study(inputs), ARM), ARM, 0, begun, str(inputs / "teacher"))
    try:
        assert (run.place.number, run.ledger.steps, run.objective.options.objective) == (1, 8, "tinybert")
        weights, moments = (state(begun, BOUNDARIES[0], file) for file in (WEIGHTS, FIRST))
        now = dict(run.engine.module.named_parameters())
        assert {name for name in now if name.startswith("objective.")} == {"objective.projection.weight"}
        assert all(torch.equal(run.engine.full_weight(now[name]), value) for name, value in weights.items())
        adam = run.engine.deepspeed.basic_optimizer
        carried = [name for name in now if name in moments and now[name].requires_grad]
        assert len(carried) > 20
        assert all(torch.equal(adam.state[now[name]]["exp_avg"], moments[name]) for name in carried)
        assert not adam.state[now["objective.projection.weight"]]["exp_avg"].any()
        assert {float(adam.state[now[name]]["step"]) for name in carried} == {8.0}
        assert run.place.never_trained == []  # scratch trained all of the student
    finally:
        run.close()


def keep_until(run: Path, copy: Path, step: int) -> None:
    """``copy``: the run as it was when the checkpoint of ``step`` was its newest."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export*", "summary.json", "ledger.json"))
    for path in checkpoint.published(copy / "checkpoints"):
        if path.name > checkpoint.name_of(step):
            shutil.rmtree(path)


@pytest.mark.parametrize("step", [7, 8, 9], ids=lambda step: f"after step {step}")
def test_a_run_that_died_before_at_or_after_a_boundary_ends_with_the_same_bits(
    step: int, inputs: Path, tmp_path: Path, finished: Path
) -> None:
    keep_until(finished, tmp_path / "run", step)
    train(study(inputs), tmp_path / "run", inputs)
    assert_same(finished, tmp_path / "run")


def test_a_checkpoint_names_the_phase_of_its_own_ledger(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at the steps takes time that is charged: a run must not go on, for ever, in a phase that is over."""
    recipe = alone(study(inputs, budget={"tokens": None, "hours": 1.0}), ARM)
    run = prepare_run(recipe, ARM, 0, tmp_path, str(inputs / "teacher"))
    try:
        monkeypatch.setattr(run.step, "check", lambda: setattr(run.ledger.accounts["student"], "seconds", 0.5 * 3600))
        assert 0.5 <= loop.save(run) < 0.6
        loop.finish_saving(run)
    finally:
        run.close()
    about = checkpoint.read(checkpoint.published(tmp_path / "checkpoints")[-1])
    assert about.run["phase"]["next"] == 1  # phases end at 0.4, 0.7 and 1.0


def test_a_validation_that_a_stop_at_a_boundary_puts_off_is_still_of_the_phase_before(
    inputs: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = loop.charge

    def charge_and_stop(run: Run) -> None:
        charge(run)
        if run.ledger.steps == BOUNDARIES[0] - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "charge", charge_and_stop)
        with pytest.raises(Interrupted, match=f"at step {BOUNDARIES[0]}"):
            train(study(inputs), tmp_path / "run", inputs)
    assert not any("validation/probe_mlm_loss" in row for row in read_metrics(tmp_path / "run"))
    train(study(inputs), tmp_path / "run", inputs)
    validated = [row for row in read_metrics(tmp_path / "run") if "validation/probe_mlm_loss" in row]
    assert [row["step"] for row in validated] == [8, 10, 20]
    assert ["validation/mlm_loss" in row for row in validated] == [True, False, False]
    assert_same(finished, tmp_path / "run")


def assert_same(one: Path, other: Path) -> None:
    whole, resumed = (load_file(run / "export" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    times = {"hours", "tokens_per_second"}
    before, after = (
        [{k: v for k, v in row.items() if k not in times} for row in read_metrics(run)] for run in (one, other)
    )
    assert before == after


@pytest.mark.long
@pytest.mark.parametrize("ds_config", ["zero0", "zero2", "zero3"])
def test_killed_on_both_sides_of_a_boundary_it_ends_with_the_same_bits(
    ds_config: str, inputs: Path, tmp_path: Path
) -> None:
    """kill -9 of the command, twice; the boundary is that of steps 24 and 25 of 60."""
    training = {"ds_config": ds_config, "keep_at": [], "checkpoint_every_steps": 5, "precision": "bf16"}
    recipe = study(inputs, training=training, budget={"tokens": 60 * 8 * 16})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")

    def command(name: str) -> list[str]:
        return ["-m", "kd_megatron", "pretrain", str(path), "--arm", ARM, "--output", str(tmp_path / name)]

    processes.run(command("whole"))
    for step in (22, 26):
        (process,) = processes.start(command("run"))
        wait_for_step(tmp_path / "run", process, step)
        process.kill()
        process.communicate(timeout=100)
    processes.run(command("run"))
    assert_same(tmp_path / "whole", tmp_path / "run")


def wait_for_step(run: Path, process: Any, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        if any(f'"step": {number},' in line for line in lines for number in range(step, 61)):
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0][-3000:]}")


def test_a_branch_crosses_boundaries_as_its_run_does(inputs: Path, tmp_path: Path, finished: Path) -> None:
    branch = leave(finished, 0.35, 0.5)
    recipe = alone(study(inputs), ARM)
    summary = pretrain(recipe, ARM, 0, tmp_path / "branch", str(inputs / "teacher"), branch)
    assert (summary["steps"], summary["branch"]["decay_steps"]) == (10, 3)
    found = [row for row in rows(tmp_path / "branch") if row["step"] > 7]
    assert ["loss/mlm" in row for row in found] == [True, False, False]
    assert found[0]["loss"] == rows(finished)[7]["loss"]  # at step 8 the learning rate has not told yet


def test_each_phase_is_charged_its_own_cost(inputs: Path, finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    recipe, tokens = study(inputs), 8 * 16
    costs = [arm_cost(recipe, arm, 300) for arm in ("scratch", "tinybert", "minilm")]
    for account in ("student", "teacher", "loss"):
        per_token = [getattr(cost, f"{account}_flops_per_token") for cost in costs]
        expected = tokens * sum(steps * flops for steps, flops in zip((8, 6, 6), per_token, strict=True))
        assert summary["ledger"]["accounts"][account]["flops"] == pytest.approx(expected)
        assert summary["flops_per_token"][account] == pytest.approx(expected / (20 * tokens))  # a budget in tokens
    assert summary["objective"] == "schedule"
    assert summary["teacher"]["parameters"] > 0
    assert summary["untrained_parameters"] == []
    assert costs[0].teacher_parameters == 0
    assert arm_cost(recipe, ARM, 300).teacher_parameters == costs[1].teacher_parameters


def test_a_run_counts_as_untrained_what_no_phase_trained(inputs: Path, tmp_path: Path) -> None:
    phases = [{"until": 0.5, **MINILM}, {"until": 1.0, **TINYBERT}]
    recipe = tiny_study(inputs, arms={ARM: {"objective": "schedule", "phases": phases}}, budget={"tokens": 2 * 8 * 16})
    untrained = train(recipe, tmp_path / "run", inputs)["untrained_parameters"]
    assert untrained
    assert all(name.startswith("cls.") for name in untrained)  # tinybert reaches the last layer's output, minilm not


COSTS = [SequenceCost(3.0, 0.0, 1.0, 0.0), SequenceCost(3.0, 4.0, 1.0, 4.0)]


@pytest.mark.parametrize(
    ("budget", "teacher"),
    [
        ({"tokens": 100.0}, 0.5 * 4.0),
        ({"flops": 100.0}, 4.0 * (0.5 / 8) / (0.5 / 4 + 0.5 / 8)),  # half the FLOPs at 4 each, half at 8 each
        ({"hours": 1.0}, 4.0 * (0.5 / 8) / (0.5 / 4 + 0.5 / 8)),
        ({"flops": 100.0, "charge": ["student"]}, 0.5 * 4.0),  # 3 each in both phases
        ({"hours": 1.0, "calibrate": {}}, 0.5 * 4.0),  # a number of steps, which the phases share
        ({"hours": 1.0, "calibrated": {"steps": 10, "tokens_per_second": 5.0}}, 0.5 * 4.0),
    ],
    ids=lambda value: str(value),
)
def test_the_mean_cost_is_over_the_sequences_that_the_budget_buys(budget: dict[str, Any], teacher: float) -> None:
    mean = mean_cost(COSTS, [0.5, 0.5], BudgetRecipe(**budget))
    assert mean.teacher == pytest.approx(teacher)
    assert (mean.student, mean.loss) == (3.0, 1.0)


def test_memory_is_that_of_the_phase_that_holds_most(inputs: Path) -> None:
    recipe = study(inputs)
    each = [simulate_arm(recipe, arm, 300) for arm in ("scratch", "tinybert", "minilm")]
    assert simulate_arm(recipe, ARM, 300).teacher in [held.teacher for held in each[1:]]


def test_memory_that_was_measured_is_that_of_the_phase_that_took_most(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = iter([100, 300, 200])  # bytes, as a GPU's allocator would tell in each phase

    class Meter:
        def __init__(self, _: torch.device) -> None:
            self.peak_bytes = next(sizes)

        def step(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    monkeypatch.setattr(setup, "MemoryMeter", Meter)
    assert train(study(inputs), tmp_path, inputs)["memory"]["training_bytes"] == 300
    assert next(sizes, None) is None


def test_a_teacher_cache_is_refused_at_plan_and_before_training(inputs: Path, tmp_path: Path) -> None:
    recipe = study(inputs, teacher={"cache": {"path": str(tmp_path / "cache")}}, data={"mask_seed": 1})
    for spend in (lambda: arm_cost(recipe, ARM, 300), lambda: train(recipe, tmp_path / "run", inputs)):
        refused: Callable[[], Any] = spend
        with pytest.raises(RecipeError, match=r"is a schedule, and the recipe has teacher\.cache"):
            refused()


def test_a_calibration_times_every_phase(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = study(inputs, budget={"tokens": None, "hours": 1.0, "calibrate": {"rounds": 2, "steps": 1}})
    speeds, timed = {"scratch": 100.0, "tinybert": 40.0, "minilm": 50.0}, []

    def speed(run: Any, num_steps: int) -> float:
        run.step()
        timed.append(run.run.objective.options.objective)
        return speeds[timed[-1]]

    monkeypatch.setattr(calibration, "_speed", speed)
    calibrate = recipe.budget.calibrate
    assert calibrate is not None
    found = calibration.measure(alone(recipe, ARM), calibrate, str(inputs / "teacher"))
    assert timed == ["scratch", "tinybert", "minilm"] * 2
    expected = 1.0 / (0.4 / 100 + 0.3 / 40 + 0.3 / 50)
    assert found["arms"][ARM]["tokens_per_second"]["p50"] == pytest.approx(expected)
