import json

import pytest
import study_on_disk
from matplotlib.collections import LineCollection
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.analysis import break_even, results
from kd_megatron.analysis.break_even import BreakEven
from kd_megatron.analysis.curves import CurvePoint
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.report.study import break_even_table, curve_figures, tables
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout

ARMS = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
FLOPS = [1e13, 2e13, 3e13, 4e13]
LOSSES = {"scratch": [8.0, 7.0, 6.0, 5.0], "minilm": [7.0, 6.0, 5.0, 4.0]}  # one reading ahead: saves 1e13


LEADS = (0.01, 0.0, -0.01)  # nats by seed, so that the lead has a deviation


FIXED = {"measure": "probe_loss", "students": 3}


def study(tmp_path, num_seeds=3, losses=LOSSES):
    directory = study_on_disk.write_study(
        tmp_path / "s", study_on_disk.study_recipe(arms=ARMS, num_seeds=num_seeds, protocol=FIXED)
    )
    for arm, values in losses.items():
        for seed in range(num_seeds):
            run = directory / "arms" / arm / f"seed_{seed}"
            study_on_disk.write_losses(run, FLOPS, values)
            study_on_disk.edit_summary(run, validation={"probe_mlm_loss": values[-1] + LEADS[seed] * (arm == "minilm")})
    return directory


def readings(*pairs):
    return [CurvePoint(flops / 4e13, flops, flops, value, False) for flops, value in pairs]


def by_loss(directory, cost=9e14):
    return break_even.break_even(results.load(directory), "minilm", "probe_loss", cost)


def test_hand_worked(tmp_path):
    found = by_loss(study(tmp_path))
    assert found.saved.mean == pytest.approx(1e13)  # minilm is at 5.0 nats after 3e13, scratch after 4e13
    assert found.students == 90  # 9e14 / 1e13
    assert found.in_words == "90 students"
    assert found.budget_for(1) is None
    assert found.budget_for(90) == pytest.approx(2e13, rel=0.01)  # from 2e13 on 1e13 is saved; before, nothing is known


def test_interval_comes_from_the_seeds(tmp_path):
    directory = study(tmp_path)
    # seed 1 saves 1e13 less 4e12: 5.0 nats are reached between 3e13 and 4e13, at half of the logarithm
    study_on_disk.write_losses(directory / "arms" / "minilm" / "seed_1", FLOPS, [7.0, 6.0, 5.5, 4.5])
    found = by_loss(directory)
    saved = [1e13, 4e13 - (3e13 * 4e13) ** 0.5, 1e13]
    assert found.saved.mean == pytest.approx(sum(saved) / 3)
    few, many = found.interval
    assert few == -(-9e14 // found.saved.high)
    assert few < found.students < many


def test_the_figure_has_the_interval_at_the_end(tmp_path):
    directory = study(tmp_path)
    study_on_disk.write_losses(directory / "arms" / "minilm" / "seed_1", FLOPS, [7.0, 6.0, 5.5, 4.5])
    certain = by_loss(directory)
    study_on_disk.write_losses(directory / "arms" / "minilm" / "seed_1", FLOPS, [8.0, 7.0, 6.0, 4.999])
    doubtful = by_loss(directory)
    assert doubtful.interval[1] == float("inf")
    for found in (certain, doubtful):
        axes = curve_figures.break_even(results.load(directory), [found]).axes[0]
        [bar] = [one for one in axes.collections if isinstance(one, LineCollection)]
        (_, low), (_, high) = bar.get_segments()[0]
        top = axes.get_ylim()[1]
        assert low == found.interval[0]
        assert (high < top) == (high == found.interval[1]) == (found is certain)


def test_teachers_cost_nobody_stated(tmp_path):
    found = by_loss(study(tmp_path), None)
    assert found.students is None
    assert found.interval is None
    assert found.budget_for(1) is None
    assert "unknown" in found.in_words
    [row] = break_even_table.table(results.load(tmp_path / "s"), [found]).rows
    assert row["budget_alone"] == row["budget_shared"] == "unknown"


def test_an_arm_that_is_ahead_from_its_first_reading_pays_at_the_full_budget(tmp_path):
    found = by_loss(study(tmp_path, losses=LOSSES | {"minilm": [4.9, 4.5, 4.2, 4.0]}), 3e13)
    assert found.students == 1  # 5.0 nats after 1e13 at most, scratch after 4e13: 3e13 are saved
    assert found.budget_for(1) == pytest.approx(4e13)
    assert found.budget_for(3) == pytest.approx(4e13)  # what a smaller one saves is not known


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-5.1e13, 3.2e13), "never, by the mean of the seeds: undecided"),
        ((None, None), "never, by the mean of the seeds: undecided"),
        ((-2e13, -1e12), "never: nothing is saved"),
    ],
)
def test_never_needs_an_interval_below_zero(interval, said):
    saved = Estimate(3, -9.4e12, *interval)
    assert BreakEven("minilm", "probe_loss", 4e13, saved, 3, 3, 4, True, 9e14, ()).in_words == said


def test_an_arm_that_does_not_get_there(tmp_path):
    found = by_loss(study(tmp_path, losses=LOSSES | {"minilm": [9.0, 8.0, 7.0, 6.0]}))
    assert (found.num_reaching, found.saved, found.students) == (0, None, None)
    assert found.in_words == "the reference's result is not reached in 3 of 3 seeds"


def test_a_lead_that_may_be_chance_pays_nothing_back_for_certain(tmp_path):
    directory = study(tmp_path)
    for seed, last in enumerate((4.9, 4.0, 3.0)):
        run = directory / "arms" / "minilm" / f"seed_{seed}"
        study_on_disk.edit_summary(run, validation={"probe_mlm_loss": last})
    # leads of 0.1, 1.0 and 2.0 nats: mean 1.03, s = 0.95, half = 4.30 * 0.95 / sqrt(3) = 2.4
    assert by_loss(directory).in_words == "90 students, if it is ahead at all: undecided"


def test_one_seed_has_no_interval(tmp_path):
    found = by_loss(study(tmp_path, num_seeds=1))
    assert found.students == 90
    assert found.interval is None


def test_a_loss_that_rises_again_counts_from_the_last_time():
    up_again = readings((1.0, 5.0), (2.0, 7.0), (4.0, 5.0))
    assert break_even.flops_to_reach(up_again, -6.0, -1.0) == pytest.approx(2.0 * 2**0.5)
    assert break_even.flops_to_reach(up_again, -5.0, -1.0) == pytest.approx(4.0)
    assert break_even.flops_to_reach(up_again, -4.0, -1.0) is None
    assert break_even.flops_to_reach(readings((1.0, 5.0), (2.0, 4.0)), -6.0, -1.0) == 1.0  # no later than that


def costs(found, arm):
    """FLOPs by which one student's cost grows when the teacher is included, and when it is shared."""
    row = next(row for row in tables.teacher_cost(found).rows if row["arm"] == arm)
    return [
        pytest.approx(row[kind] - row["excluded"], rel=HAND_WORKED_STATISTIC_RELATIVE)
        for kind in ("included", "amortised")
    ]


def test_students_that_begin_from_the_teacher_owe_it(tmp_path):
    student = study_on_disk.recipe_data()["student"] | {"initialise": {"method": "teacher_layers"}}
    recipe = study_on_disk.study_recipe(arms=ARMS, student=student)
    found = results.load(study_on_disk.write_study(tmp_path / "s", recipe))
    for arm in ARMS:
        assert costs(found, arm) == [9e14, 9e14 / 6]  # two arms x three seeds
    assert break_even.all_break_evens(found) == []
    write_report(found.directory)
    markdown = (found.directory / "report" / "report.md").read_text()
    assert "the reference (scratch) begins from the teacher as well: its cost is common to both." in markdown
    assert "Students whose first weights are the teacher's layers owe it too: scratch, minilm." in markdown
    assert "What pays the teacher's training back" not in markdown


def test_an_arm_that_begins_from_the_teacher_and_never_learns_from_it_pays_it_back(tmp_path):
    begins = {"objective": "scratch", "student.initialise.method": "teacher_layers"}
    arms, allowed = {"scratch": ARMS["scratch"], "minilm": begins}, ["student.initialise.method"]
    recipe = study_on_disk.study_recipe(arms=arms, allow_difference=allowed)
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    for seed in range(3):
        study_on_disk.edit_summary(layout.arm_directory(directory, "minilm", seed), teacher=None)
    found = results.load(directory)
    assert costs(found, "scratch") == [0, 0]
    assert costs(found, "minilm") == [9e14, 9e14 / 3]
    assert {(one.arm, one.teacher_flops) for one in break_even.all_break_evens(found)} == {("minilm", 9e14)}
    assert break_even.common_cost(found) is None


def test_report_has_table_and_figure(tmp_path):
    directory = study(tmp_path)
    write_report(directory)
    markdown = (directory / "report" / "report.md").read_text()
    assert "What pays the teacher's training back" in markdown
    assert "| 90 students |" in markdown
    assert (directory / "report" / "figures" / "break_even.png").is_file()
    rows = json.loads((directory / "report" / "results.json").read_text())["tables"]["break_even"]
    assert rows[0]["students"] == 90


def test_scores_at_markers(tmp_path):
    recipe = study_on_disk.study_recipe(arms=ARMS, markers={"at": [0.5]})
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    for arm, ahead in (("scratch", 0.0), ("minilm", 0.1)):
        for seed in range(3):
            study_on_disk.edit_summary(layout.arm_directory(directory, arm, seed), tokens=4e7, flops=4e13)
            half = layout.branch_directory(directory, arm, seed, 0.5)
            study_on_disk.edit_summary(half, tokens=2e7, flops=2e13)
            study_on_disk.edit_summary(layout.branch_finetune_directory(directory, arm, seed, 0.5), average=0.5 + ahead)
            last = directory / "finetune" / arm / f"seed_{seed}"
            study_on_disk.edit_summary(last, average=0.6 + ahead)
    found = break_even.break_even(results.load(directory), "minilm", "score", 9e14)
    assert found.saved.mean == pytest.approx(2e13)  # 0.6 at 2e13 already
    assert found.students == 45
    write_report(directory)
    figures = {path.stem for path in (directory / "report" / "figures").glob("*.png")}
    assert {"score_against_budget", "cola_against_tokens"} <= figures
