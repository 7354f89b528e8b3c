"""Intervals of scores, which have two levels, hold what they promise though fine-tunings collapse: by simulation."""

import math
import re
from pathlib import Path

import numpy
import planted_study
import pytest
import two_levels
from scipy import stats

from kd_megatron.analysis import coverage
from kd_megatron.analysis.statistics import estimate, finetuning_variance, paired_p_value
from kd_megatron.study.power import fewest_students, power

DOCS = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
BELOW = (3, 3)  # students, fine-tunings: 13 % of such studies see no collapse, and no interval can know of any
SETTINGS = [(students, tuned) for students in range(3, 9) for tuned in (3, 4, 5) if (students, tuned) != BELOW]
STUDIES = 500


def test_variance_of_fine_tunings_by_hand():
    # within: (0.02 + 0.02) / (1 + 1) = 0.02 of two scores each, so 0.01 of a mean; one score alone says nothing
    assert finetuning_variance([[0.1, 0.3], [0.5, 0.7], [0.9]]) == pytest.approx(0.01)
    assert finetuning_variance([[0.1], [0.2]]) == 0.0
    assert finetuning_variance([]) == 0.0


def test_an_interval_is_never_narrower_than_fine_tunings_alone_would_make_it():
    values = [1.0, 2.0, 3.0]  # variance 1
    assert estimate(values, floor=0.5) == estimate(values)
    assert paired_p_value(values, 0.5) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    wide = estimate(values, floor=4.0)
    assert wide.half_width == pytest.approx(2 * estimate(values).half_width)
    assert paired_p_value(values, 4.0) == pytest.approx(2 * stats.t.sf(2.0 * math.sqrt(3) / 2.0, 2))
    assert estimate([1.0, 1.0, 1.0], floor=4.0).half_width == 0.0  # no variation stays no evidence


def test_a_score_has_the_floor_of_its_fine_tunings_and_a_loss_has_none():
    def value(arm, quantity, seed):
        return (
            0.5 + 0.001 * seed + numpy.array([-0.2, 0.0, 0.2]) if quantity in planted_study.TASKS else 3.0 + seed / 10
        )

    study = planted_study.results(planted_study.recipe(3, 2), value)
    within = 0.04  # of each task; both tasks go together here, so it is that of the average too
    assert study.finetuning_variance("first", "task", "CoLA") == pytest.approx(within / 3)
    assert study.finetuning_variance("first", "score") == pytest.approx(within / 3)
    assert study.finetuning_variance("first", "probe_loss") == 0.0
    half = stats.t.ppf(0.975, 2) * math.sqrt(within / 3 / 3)
    assert study.mean("first", "score").half_width == pytest.approx(half)
    assert study.mean("first", "probe_loss").half_width == pytest.approx(estimate([3.0, 3.1, 3.2]).half_width)


@pytest.mark.parametrize(("students", "finetunings"), SETTINGS)
def test_intervals_hold_what_they_promise_though_a_fifth_of_the_fine_tunings_collapse(students, finetunings):
    share = two_levels.COLLAPSED
    held = [*two_levels.coverage(STUDIES, students, finetunings, (share, share))]
    held += two_levels.coverage(STUDIES, students, finetunings, (share, 0.0))
    assert min(held) >= 0.93 - 2.5 * (0.93 * 0.07 / STUDIES) ** 0.5


def test_where_they_do_not_the_report_says_what_they_hold():
    def value(arm, quantity, seed):
        return 0.5 + 0.01 * seed + numpy.array([-0.2, 0.0, 0.2]) if quantity in planted_study.TASKS else 3.0 + seed / 10

    assert two_levels.coverage(STUDIES, *BELOW, (0.2, 0.2))[0] < 0.92
    [said] = coverage.shortfall(planted_study.results(planted_study.recipe(3), value))
    assert "from 3 students with 3 fine-tunings each hold a mean score in 87 % of simulated studies" in said
    assert coverage.shortfall(planted_study.results(planted_study.recipe(4), value)) == []
    assert coverage.shortfall(planted_study.results(planted_study.recipe(3, finetune=None), value)) == []


@pytest.mark.long
def test_the_tables_of_the_report_and_of_the_docs_are_those_of_the_simulation(capsys):
    two_levels.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(two_levels.STUDENTS) * len(two_levels.FINETUNINGS)
    written = DOCS.read_text(encoding="utf-8")
    for row in rows:
        students, finetunings, _, mean, _, difference = (cell.strip() for cell in row.strip("| ").split("|"))
        kept = [table[int(students)][int(finetunings) - 1] for table in (coverage.OF_A_MEAN, coverage.OF_A_DIFFERENCE)]
        assert kept == [float(mean), float(difference)]
        assert row in written


def test_the_docs_have_the_table_of_the_report():
    written = re.findall(
        r"^\| (\d) \| (\d) \| [^|]+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|$", DOCS.read_text("utf-8"), re.M
    )
    assert len(written) == len(two_levels.STUDENTS) * len(two_levels.FINETUNINGS)
    for students, finetunings, *shown in written:
        kept = [table[int(students)][int(finetunings) - 1] for table in (coverage.OF_A_MEAN, coverage.OF_A_DIFFERENCE)]
        assert kept == [float(one) for one in shown]


def test_power_is_what_simulated_t_tests_have():
    draws = numpy.random.default_rng(0).normal(2.0, 1.0, (20_000, 6))
    for num in (1, 3, 15):
        found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05 / num).mean()
        assert power(2.0, 6, num) == pytest.approx(found, abs=0.01)
    assert [round(power(2.0, students, 3), 2) for students in (3, 6, 8)] == [0.19, 0.85, 0.98]
    assert power(0.0, 6, 3) == pytest.approx(0.05 / 3)  # the level
    assert power(2.0, 1, 3) == 0.0
    assert [fewest_students(num) for num in (1, 3, 15)] == [5, 6, 8]


def test_power_is_a_number_wherever_it_is_asked_for():
    found = [power(effect, students, num) for effect in (0.5, 1.0, 3.0) for students in range(2, 60) for num in (1, 24)]
    assert all(0.0 < one <= 1.0 + 1e-9 for one in found)  # scipy's noncentral t is nan in a far tail
