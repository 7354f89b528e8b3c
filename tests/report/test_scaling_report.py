import json
from dataclasses import replace
from functools import partial

import numpy
import pytest
import study_on_disk

from kd_megatron.analysis import laws as laws_module
from kd_megatron.analysis import results, scaling
from kd_megatron.analysis.crossover import Crossover
from kd_megatron.analysis.laws import _price, load_beside
from kd_megatron.errors import OutputError
from kd_megatron.report.study import scaling_table, tables
from kd_megatron.report.study.page import write_report
from kd_megatron.study.layout import arm_directory

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
LAWS = {"scratch": (2.0, 60.0, 0.28), "minilm": (1.9, 70.3189, 0.28)}  # cross at 1.5446e7 tokens: test_scaling.py
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def study(directory, budget, fractions=FRACTIONS, generator=None, unique=None, **changes):
    """A study whose budget is ``budget`` tokens for each arm, at one FLOP a token... times a million."""
    generator = generator or numpy.random.default_rng(7)
    recipe = study_on_disk.study_recipe(arms=ARMS, budget={"flops": 1e6 * budget}, **changes)
    study_on_disk.write_study(directory, recipe)
    for arm, (floor, coefficient, exponent) in LAWS.items():
        for seed in range(3):
            tokens = [budget * fraction for fraction in fractions]
            losses = [(floor + coefficient * n**-exponent) * (1 + 0.001 * generator.normal()) for n in tokens]
            run = directory / "arms" / arm / f"seed_{seed}"
            study_on_disk.write_losses(run, [1e6 * n for n in tokens], losses)
            spent = {"unit": "flops", "limit": 1e6 * budget, "spent": 1e6 * budget, "charge": []}
            study_on_disk.edit_summary(
                run, tokens=budget, unique_tokens=unique or budget, flops=1e6 * budget, budget=spent
            )
    return directory


@pytest.fixture(scope="module")
def budgets(tmp_path_factory):
    generator, root = numpy.random.default_rng(8), tmp_path_factory.mktemp("budgets")
    sizes = (1e6, 4e6, 16e6, 64e6, 256e6)
    return [study(root / f"b{number}", size, generator=generator) for number, size in enumerate(sizes)]


def test_final_losses_of_five_budgets(budgets):
    first = results.load(budgets[0])
    found = laws_module.laws([first, *load_beside(first, budgets[1:])])
    assert {len(law.points) for law in found.fits.values()} == {15}
    for arm, (floor, _, exponent) in LAWS.items():
        for true, (low, high) in zip((floor, exponent), map(found.fits[arm].interval, (0, 2)), strict=True):
            assert low < true < high
    change = found.crossovers["minilm"]
    assert change.low < 1e6 * 1.5446e7 < change.high  # in FLOPs
    assert change.better_after == "minilm"
    assert found.warnings == ["Few points: 5 amounts of text for three unknowns."]


def test_report_with_other_budgets(budgets):
    write_report(budgets[0], beside=budgets[1:])
    markdown = (budgets[0] / "report" / "report.md").read_text()
    assert "minilm is lower beyond" in markdown
    assert "break-even budget by the laws, 1 student" in markdown
    assert (budgets[0] / "report" / "figures" / "scaling.png").is_file()


def test_losses_on_the_way_are_no_losses_of_smaller_budgets(tmp_path):
    directory = study(tmp_path / "s", 64e6)
    found = laws_module.laws([results.load(directory)])
    assert set(found.fitted) == {"scratch", "minilm"}
    assert "these are not losses of smaller budgets" in found.warnings[0]
    write_report(directory)
    assert "these are not losses of smaller budgets" in (directory / "report" / "report.md").read_text()


def test_points_of_one_run_are_not_taken_for_independent_at_a_constant_rate(tmp_path):
    found = laws_module.laws([results.load(study(tmp_path / "s", 64e6, training={"schedule": "constant"}))])
    assert found.warnings[0].startswith("Several points are of one run, at a constant learning rate")


def test_no_change_of_order_is_one_in_the_budgets_searched(tmp_path):
    read = results.load(study(tmp_path / "s", 64e6))
    laws = laws_module.laws([read])
    said = []
    for share, high in ((1.0, 0.0), (0.6, 5e13)):
        change = Crossover(None, 0.0, high, "minilm", (1e12, 6e13), share)
        rows = scaling_table.table(read, replace(laws, crossovers={"minilm": change})).rows
        said.append(rows[1]["crossover"])
    assert said[0] == "none in the budgets searched: minilm is lower than scratch"
    assert said[1] == said[0] + ", throughout in 60 % of resamples"


def test_an_unfair_study_says_nothing_of_the_order(tmp_path):
    directory = study(tmp_path / "s", 64e6)
    study_on_disk.edit_summary(directory / "arms" / "minilm" / "seed_1", fingerprint={"data": "0badf00d"})
    read = results.load(directory)
    rows = scaling_table.table(read, laws_module.laws([read])).rows
    assert [row["crossover"] for row in rows] == ["\N{EN DASH}", "unfair: none"]


def of_size(directory, size, generator):
    """A study of students of ``size``; minilm gains 0.2 nats by its floor and loses 37.8 N^-0.35 by its size."""
    study(directory, 64e6)
    for arm, (floor, scale) in {"scratch": (2.0, 80.0), "minilm": (1.8, 117.8)}.items():
        for seed in range(3):
            tokens = [64e6 * fraction for fraction in FRACTIONS]
            losses = [floor + 60 * n**-0.28 + scale * size**-0.35 + 0.001 * generator.normal() for n in tokens]
            run = directory / "arms" / arm / f"seed_{seed}"
            study_on_disk.write_losses(run, [1e6 * n for n in tokens], losses)
            study_on_disk.edit_summary(run, parameters=size)
    return directory


def test_crossovers_are_those_of_the_studys_own_size(tmp_path, monkeypatch):
    monkeypatch.setattr(laws_module, "fit", partial(scaling.fit, num_draws=20))
    generator = numpy.random.default_rng(9)
    small, middle, large = (of_size(tmp_path / f"{size:g}", size, generator) for size in (1e6, 16e6, 256e6))
    # at 1e6 parameters minilm's size costs 0.30 nats and its floor gains 0.20; at 16e6, the mean of all, 0.11
    for own, others, better, count in (
        (small, (middle, large), "scratch", "1M"),
        (large, (small, middle), "minilm", "256M"),
    ):
        first = results.load(own)
        found = laws_module.laws([first, *load_beside(first, others)])
        assert found.crossovers["minilm"].at is None
        assert found.crossovers["minilm"].better_after == better
        note = scaling_table.table(first, found).note
        assert "a term B N^-beta as well (scratch: B " in note
        assert f"for N = {count} parameters, this study's own" in note


def test_repetition_is_warned_of(tmp_path):
    directory = study(tmp_path / "s", 64e6, unique=8e6)
    said = " ".join(laws_module.laws([results.load(directory)]).warnings)
    assert "Data is repeated, up to 8.0 times: the law is one for text without repetition; beyond about four" in said


def test_short_reach_is_warned_of(tmp_path):
    directory = study(tmp_path / "s", 64e6, fractions=(0.15, 0.2, 0.3, 0.5, 0.7, 1.0))
    said = " ".join(laws_module.laws([results.load(directory)]).warnings)
    assert "over a factor of 6.7 of text alone" in said


def test_too_few_points_are_a_refusal_and_no_table(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())
    write_report(directory)
    markdown = (directory / "report" / "report.md").read_text()
    said = "scratch, vanilla_kd, minilm, tinybert: no fit: losses at 4 different amounts of text"
    assert said in markdown
    assert not (directory / "report" / "tables" / "scaling.csv").exists()


def test_a_study_that_differs_in_more_lends_nothing(tmp_path, budgets):
    other = study(tmp_path / "o", 2e6, training={"global_batch_size": 32})
    with pytest.raises(OutputError, match=r"differ in training\.global_batch_size"):
        load_beside(results.load(budgets[0]), [other])


def test_an_arm_with_a_dot_in_its_name_is_compared_like_any_other(tmp_path, monkeypatch):
    for table in (study_on_disk.SCORES, study_on_disk.PROBE):
        monkeypatch.setitem(table, "mini.lm", table["minilm"])
    first, second = (
        study_on_disk.write_study(
            tmp_path / str(heads),
            study_on_disk.study_recipe(
                arms={"scratch": ARMS["scratch"], "mini.lm": {"objective": "minilm", "num_relation_heads": heads}}
            ),
        )
        for heads in (12, 24)
    )
    with pytest.raises(OutputError, match=r"differ in arms\.mini\.lm\.num_relation_heads"):
        load_beside(results.load(first), [second])


def test_a_calibrated_token_costs_what_its_budget_says(tmp_path):
    """The hours that happened to pass are noise, and no overshoot."""
    study = results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe()))
    before = _price(study, "scratch")
    for run in study.all_runs():
        where = arm_directory(study.directory, run.arm, run.seed)
        budget = json.loads((where / "summary.json").read_text())["budget"]
        calibrated = {"spent": 2 * budget["limit"], "calibrated": {"steps": run.summary.steps}}
        study_on_disk.edit_summary(where, budget=budget | calibrated)
    study = results.load(study.directory)
    run = study.runs["scratch"][0]
    assert _price(study, "scratch") == pytest.approx(before, rel=0.05)
    assert _price(study, "scratch") == run.summary.budget.limit / run.summary.tokens
    assert {row["overshoot"] for row in tables.spending(study).rows} == {None}
