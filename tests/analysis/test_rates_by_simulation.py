"""What intervals and verdicts promise is what they keep: coverage and false verdicts, by simulation."""

import dataclasses

import numpy
import pytest
import study_on_disk
from interval_coverage import COLLAPSED, FALL, coverage, student_means
from scipy import stats

from kd_megatron.analysis import comparisons, results
from kd_megatron.analysis.statistics import estimate
from kd_megatron.study.power import fewest_students, power

NUM_NULL_REPORTS = 600
NUM_INTERVALS = 20_000
NUM_SEEDS = 9  # enough for verdicts on a report's whole family


def test_power_is_what_simulated_t_tests_have() -> None:
    draws = numpy.random.default_rng(0).normal(2.0, 1.0, (20_000, 6))
    for num_comparisons in (1, 3, 12):
        found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05 / num_comparisons).mean()
        assert power(2.0, 6, num_comparisons) == pytest.approx(found, abs=0.01)
    assert [round(power(2.0, num, 3), 2) for num in (3, 6, 8)] == [0.19, 0.85, 0.98]
    assert [fewest_students(num) for num in (1, 3, 12)] == [5, 6, 8]
    assert power(2.0, fewest_students(12), 12) >= 0.8 > power(2.0, fewest_students(12) - 1, 12)


@pytest.mark.parametrize("protocol", [None, {"measure": "score", "students": NUM_SEEDS}])
def test_a_report_of_arms_that_do_not_differ_has_a_verdict_in_at_most_one_of_twenty(tmp_path, monkeypatch, protocol):
    """Over all arms, tasks and measures. What is asserted is the 99.9 % bound of a binomial of 0.05."""
    monkeypatch.setattr(comparisons, "objection", lambda *_: None)  # instruments are fit
    recipe = study_on_disk.study_recipe(num_seeds=3, protocol=protocol)
    study = results.load(study_on_disk.write_study(tmp_path / "s", recipe))
    generator = numpy.random.default_rng(20_240_619)
    found = sum(_has_a_verdict(_null(study, generator)) for _ in range(NUM_NULL_REPORTS))
    assert 0 < found <= stats.binom.ppf(0.999, NUM_NULL_REPORTS, 0.05)


def _null(study, generator):
    """The study with as many students as verdicts need, whose scores and losses are noise about one mean for all arms.

    A pretraining seed moves all arms alike; tasks scatter on their own.
    """
    runs = {}
    common = generator.normal(0.0, 0.02, NUM_SEEDS)
    for arm, found in study.runs.items():
        runs[arm] = {seed: _noisy(found[seed % 3], common[seed], generator) for seed in range(NUM_SEEDS)}
    return dataclasses.replace(study, runs=runs)


def _noisy(run, common, generator):
    tasks = {
        name: dataclasses.replace(task, mean=0.5 + common + generator.normal(0.0, 0.02))
        for name, task in run.finetune.tasks.items()
    }
    loss = 4.0 - common + generator.normal(0.0, 0.02)
    summary = dataclasses.replace(run.summary, probe_loss=loss, own_loss=loss + generator.normal(0.0, 0.01))
    average = sum(task.mean for task in tasks.values()) / len(tasks)
    finetune = dataclasses.replace(run.finetune, tasks=tasks, average=average)
    return dataclasses.replace(run, summary=summary, finetune=finetune)


def _has_a_verdict(study):
    return any(one.verdict in comparisons.DECIDED for one in comparisons.declared(study))


@pytest.mark.parametrize(("num_students", "num_seeds"), [(3, 5), (5, 3), (8, 3)])
def test_intervals_over_students_cover_though_a_fifth_of_their_fine_tunings_collapse(num_students, num_seeds):
    """Of a mean, and of a difference of which one arm alone collapses: at least 93 %, less three standard errors."""
    generator = numpy.random.default_rng(1)
    arm, other = (student_means(generator, NUM_INTERVALS, num_students, num_seeds, share) for share in (0.2, 0.0))
    shares = [coverage(values, -COLLAPSED * FALL) for values in (arm, arm - other)]
    assert min(shares) >= 0.93 - 3 * (0.93 * 0.07 / NUM_INTERVALS) ** 0.5
    found = estimate(arm[0].tolist())
    assert found is not None
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, num_students - 1) * stats.sem(arm[0]))
