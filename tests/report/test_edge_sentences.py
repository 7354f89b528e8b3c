"""Sentences of a report where arms have rates of their own, unequal seeds, no variation, or a lead that is none."""

import math
import shutil

import pytest
import study_on_disk

from kd_megatron.analysis import laws, leads, results
from kd_megatron.analysis.leads import GridResults, Growth
from kd_megatron.analysis.measure import SCORE
from kd_megatron.analysis.statistics import estimate
from kd_megatron.console import units
from kd_megatron.report.grid import page
from kd_megatron.report.page.document import Bullets
from kd_megatron.report.study import break_even_table, published
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.content import Analysis, content
from kd_megatron.study import layout

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "vanilla_kd", "minilm")}
RATE, INITIALISE, WARMUP = "training.learning_rate", "student.initialise.method", "training.warmup_fraction"


def read(tmp_path, **arguments):
    return results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(**arguments)))


def said(study):
    """All that the report lists."""
    blocks = content(study, Analysis([], [], laws.laws([study]), []), {})
    return "\n".join(item for block in blocks if isinstance(block, Bullets) for item in block.items)


# --- what arms train with ---------------------------------------------------------------------------------


def test_values_are_told_with_their_arms_where_they_differ():
    assert units.by_arm({"scratch": "1", "minilm": "1"}) == "1"
    assert units.by_arm({"scratch": "1", "minilm": "2", "mine": "1"}) == "1 (scratch, mine), 2 (minilm)"


def test_the_method_tells_what_each_arm_trains_with(tmp_path):
    own = {RATE: 2e-3, INITIALISE: "teacher_layers", WARMUP: 0.1}
    study = read(tmp_path, arms=ARMS | {"minilm": ARMS["minilm"] | own}, allow_difference=list(own))
    method = said(study)
    assert "weights at first: random (scratch, vanilla_kd), teacher layers (minilm)." in method
    assert "learning rate 0.001 (scratch, vanilla_kd), 0.002 (minilm)" in method
    assert "warm-up 6 % (scratch, vanilla_kd), 10 % (minilm)" in method
    assert "All arms use one learning rate" not in method
    rows = {row["what"]: row["ours"] for row in published.setup(study).rows}
    assert rows["learning rate"] == "0.001 (scratch, vanilla_kd), 0.002 (minilm)"
    assert rows["first weights"] == "random (scratch, vanilla_kd), teacher layers (minilm)"


def test_a_model_that_students_begin_from_is_named(tmp_path):
    own = {INITIALISE: "checkpoint", "student.initialise.path": "org/encoder", "training.global_batch_size": 32}
    layers = {"student.initialise.layers": [1, 3]}
    arms = ARMS | {"minilm": ARMS["minilm"] | own, "vanilla_kd": ARMS["vanilla_kd"] | own | layers}
    study = read(tmp_path, arms=arms, allow_difference=[*own, *layers])
    begins = "random (scratch), layers 1, 3 of org/encoder (vanilla_kd), those of org/encoder (minilm)"
    assert f"weights at first: {begins}." in said(study)
    rows = {row["what"]: row["ours"] for row in published.setup(study).rows}
    assert rows["first weights"] == begins
    assert rows["batch"].endswith("32 sequences (vanilla_kd, minilm)")


@pytest.mark.parametrize("allowed", [[], [RATE], ["training"]])
def test_one_rate_is_said_to_be_one_whatever_the_recipe_allows(tmp_path, allowed):
    assert "All arms use one learning rate (0.001)" in said(read(tmp_path, arms=ARMS, allow_difference=allowed))


def test_rates_that_differ_under_a_section_that_may_are_not_one(tmp_path):
    study = read(tmp_path, arms=ARMS | {"minilm": ARMS["minilm"] | {RATE: 2e-3}}, allow_difference=["training"])
    assert "All arms use one learning rate" not in said(study)


# --- seeds ------------------------------------------------------------------------------------------------


def test_arms_with_one_seed_are_named_where_others_have_more(tmp_path):
    study = read(tmp_path, arms=ARMS)
    for seed in (1, 2):
        shutil.rmtree(layout.arm_directory(study.directory, "minilm", seed))
    shutil.rmtree(layout.arm_directory(study.directory, "vanilla_kd", 2))
    told = " ".join(caveats(results.load(study.directory), [], []))
    assert "Intervals are Student's t over 2 to 3 seeds" in told
    assert "One seed of minilm: there no interval can be given" in told
    assert "One seed: " not in told


def test_a_study_that_is_not_fine_tuned_yet_says_what_it_ranks_by(tmp_path):
    study = results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(), finetuned=False))
    assert "scratch has the best held-out MLM loss (probe)" in answer(study)
    said_of_it = "\n".join(caveats(study, [], []))
    assert "No fine-tuning yet: arms are ranked by the probe's held-out loss, which favours" in said_of_it
    assert "dev split" not in said_of_it


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.PROBE, "scratch", [math.nan] * 3)
    study = results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(), finetuned=False))
    assert "vanilla_kd has the best" in answer(study)


def test_a_difference_that_does_not_vary_is_not_said_to_include_zero(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.SCORES, "scratch", {"CoLA": [0.2] * 3, "SST-2": [0.8] * 3})
    monkeypatch.setitem(study_on_disk.SCORES, "minilm", {"CoLA": [0.24] * 3, "SST-2": [0.8] * 3})
    told = answer(read(tmp_path, arms={name: ARMS[name] for name in ("scratch", "minilm")}))
    assert told.endswith(
        "2.0 points better than scratch, the same in 3 seeds: no variation, so these seeds cannot tell minilm from "
        "scratch."
    )


# --- a grid -----------------------------------------------------------------------------------------------


def grid_answer(tmp_path, monkeypatch, low, high):
    """What is said of leads ``low`` and ``high``, by seed and in [0, 1], at few and many readings of the text."""
    growing = estimate([after - before for before, after in zip(low, high, strict=True)])
    ends = (estimate(low), estimate(high), (1.0, 8.0))
    growth = Growth("repetition", ("minilm",), "1 x budget", *ends, growing, growing, 1, None, None)
    monkeypatch.setattr(leads, "mean_growth", lambda *_: growth)
    monkeypatch.setattr(GridResults, "measures", [SCORE])
    grid = GridResults(tmp_path, study_on_disk.study_recipe(arms=ARMS), [])
    return page._axis_answer(grid, "repetition")


def test_an_arm_that_falls_behind_by_less_has_no_lead_that_grows(tmp_path, monkeypatch):
    told = grid_answer(tmp_path, monkeypatch, [-0.030, -0.031, -0.029], [-0.010, -0.010, -0.010])
    assert "? It has none, and falls behind by less, as far as these seeds tell: " in told
    assert "minilm is behind by 3.0 where text is read 1.0 times and 1.0 at 8.0 times, a growth of +2.0 [" in told
    told = grid_answer(tmp_path, monkeypatch, [-0.010, -0.010, -0.010], [-0.030, -0.031, -0.029])
    assert "? No, it has none and falls behind by more: " in told


def test_a_growth_that_does_not_vary_is_not_said_to_include_zero(tmp_path, monkeypatch):
    told = grid_answer(tmp_path, monkeypatch, [0.01] * 3, [0.03] * 3)
    assert "? These seeds cannot tell: " in told
    assert told.endswith("a growth of +2.0 points, the same in 3 seeds: no variation, which is no evidence.")


# --- break-even -------------------------------------------------------------------------------------------


def test_what_is_saved_is_understated_at_the_full_budget_alone(tmp_path):
    assert "saves at the full budget is understated; at smaller" in break_even_table._half_way(read(tmp_path))
