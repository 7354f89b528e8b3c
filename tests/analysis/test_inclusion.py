"""Which tasks an average is over, and what crossed, few or unrecorded fine-tunings take away."""

import json

import pytest
import study_on_disk
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.analysis import comparisons, results
from kd_megatron.analysis.fitness import crossed_seeds, objections
from kd_megatron.analysis.inclusion import judge
from kd_megatron.analysis.measure import PROBE, SCORE, measure_of
from kd_megatron.analysis.summaries import TaskSummary
from kd_megatron.recipe import InclusionRecipe
from kd_megatron.report.study import inclusion_table
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.caveats import caveats
from kd_megatron.report.study.page import write_report

RULE = InclusionRecipe()
SEEDS = range(3)


@pytest.fixture
def study(tmp_path):
    return study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(protocol=study_on_disk.BY_SCORE))


def words(study, quantity="score", task=None):
    return [one.word for one in objections(results.load(study), quantity, task)]


def found(mean, collapsed=0, seeds=3, majority=0.5):
    scores = {str(seed): mean for seed in range(seeds)}
    return {"t": TaskSummary("accuracy", mean, seeds, scores, majority_score=majority, num_collapsed=collapsed)}


@pytest.mark.parametrize(
    ("arms", "is_averaged", "said"),
    [
        ({"a": [found(0.55)], "b": [found(0.5)]}, True, ""),  # exactly 5 points, though 0.55 - 0.5 is not 0.05
        ({"a": [found(0.549)], "b": [found(0.5)]}, False, "no arm is 5 points above the majority class (a is by 4.9)"),
        ({"a": [found(0.4), found(0.8)]}, True, ""),  # an arm's mean is over its students
        ({"a": [found(0.9, 1, 5)], "b": [found(0.9, 0, 5)]}, True, ""),  # exactly a tenth
        ({"a": [found(0.9, 1)], "b": [found(0.9)]}, False, "1 of 6 fine-tunings collapsed (at most 10 % may)"),
        ({"a": [found(0.5, 3)]}, False, "no arm is 5 points above the majority class (a is by 0.0), and 3 of 3"),
        ({"a": [found(0.9)], "b": [{}]}, True, ""),  # a student that is not fine-tuned yet
    ],
)
def test_the_rule_by_hand(arms, is_averaged, said):
    (one,) = judge(["t"], arms, RULE)
    assert one.is_averaged is is_averaged
    assert said in one.against
    assert bool(one.against) is not is_averaged


def test_without_the_majority_the_rule_cannot_be_applied():
    assert judge(["t"], {"a": [found(0.9)], "b": [found(0.9, majority=None)]}, RULE) is None
    assert judge(["t"], {"a": [{}]}, RULE) is None


def test_all_averages_are_over_the_same_tasks(study):
    for seed in SEEDS:
        study_on_disk.edit_task(study, "scratch", seed, "CoLA", num_collapsed=3)
    loaded = results.load(study)
    assert loaded.averaged_tasks == ["SST-2"]
    for arm, scores in study_on_disk.SCORES.items():
        assert [run.score for run in loaded.runs[arm].values()] == scores["SST-2"]
        assert loaded.mean(arm, "score").mean == pytest.approx(
            sum(scores["SST-2"]) / 3, rel=HAND_WORKED_STATISTIC_RELATIVE
        )
    rows = {row["task"]: row for row in inclusion_table.table(loaded).rows}
    assert rows["CoLA"]["collapsed_scratch"] == "9 of 9"
    assert rows["CoLA"]["averaged"] == "no: 9 of 36 fine-tunings collapsed (at most 10 % may)"
    assert (rows["SST-2"]["averaged"], rows["SST-2"]["majority_score"]) == ("yes", 0.5)
    page = write_report(study).with_name("report.md").read_text(encoding="utf-8")
    assert "the average is over SST-2" in page
    assert "\N{DAGGER} CoLA is not averaged: 9 of 36 fine-tunings collapsed" in page
    assert "| CoLA | Matthews correlation | 0.0 | 33.0 (minilm) | 9 of 9 | 0 of 9 |" in page


def test_branches_are_averaged_over_the_tasks_of_whole_runs(tmp_path):
    recipe = study_on_disk.study_recipe(markers={"at": [0.5]})
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    for seed in SEEDS:
        study_on_disk.edit_task(directory, "scratch", seed, "CoLA", num_collapsed=3)
    run = results.load(directory).runs["minilm"][0]
    assert [branch.score for branch in run.branches] == [study_on_disk.SCORES["minilm"]["SST-2"][0]]


def test_without_a_fit_task_arms_are_ranked_by_the_loss(study):
    for arm in study_on_disk.ARMS:
        for seed in SEEDS:
            study_on_disk.edit_task(study, arm, seed, "SST-2", majority_score=0.95)
            study_on_disk.edit_task(study, arm, seed, "CoLA", num_collapsed=2)
    loaded = results.load(study)
    assert loaded.averaged_tasks == []
    assert measure_of(loaded) is PROBE
    assert all(run.score is None for run in loaded.all_runs())
    assert "held-out MLM loss" in answer(loaded)
    page = write_report(study).with_name("report.md").read_text(encoding="utf-8")
    assert "No task of fine-tuning is fit for an average" in page
    assert "the average is over no task, as none is fit" in page


def test_a_new_study_has_its_verdicts(study):
    assert words(study) == words(study, "task", "CoLA") == []
    assert "better" in {one.verdict for one in comparisons.overall(results.load(study), "score")}
    said = " ".join(caveats(results.load(study), [], []))
    assert "Every student is fine-tuned with 3 seeds of its own" in said


def test_crossed_seeds_are_found_in_the_records(study):
    for arm, seed in (("scratch", 0), ("minilm", 2)):
        path = study / "finetune" / arm / f"seed_{seed}" / "summary.json"
        summary = json.loads(path.read_text())
        for part in summary["tasks"].values():
            for cell in part["cells"]:
                if cell["seed"] == 1:
                    cell["used_seed"] = 77
        path.write_text(json.dumps(summary))
    loaded = results.load(study)
    assert crossed_seeds(loaded) == [77]
    assert words(study) == words(study, "task", "SST-2") == ["crossed seeds"]
    assert words(study, "probe_loss") == []
    assert {one.verdict for one in comparisons.overall(loaded, "score")} == {"crossed seeds: none"}
    assert {one.verdict for one in comparisons.by_task(loaded, "minilm")} == {"crossed seeds: none"}
    page = write_report(study).with_name("report.md").read_text(encoding="utf-8")
    assert "Students are fine-tuned with the same 1 seed (77)" in page
    assert "of its own" not in page


def test_records_of_an_earlier_version_give_no_verdict_and_the_old_average(study):
    study_on_disk.as_of_an_earlier_version(study)
    loaded = results.load(study)
    assert words(study) == ["crossed seeds", "majority not recorded", "few fine-tuning seeds"]
    assert crossed_seeds(loaded) == [0]
    assert loaded.averaged_tasks == ["CoLA", "SST-2"]
    assert inclusion_table.table(loaded) is None
    assert measure_of(loaded) is SCORE
    assert loaded.runs["minilm"][0].score == pytest.approx((0.31 + 0.84) / 2)
    page = write_report(study).with_name("report.md").read_text(encoding="utf-8")
    assert "No winner is named by the mean score." in page
    assert "The scores of the majority class were not recorded" in page


def test_two_seeds_of_its_own_are_few(study):
    for task in study_on_disk.MAJORITY:
        scores = {"0": 0.3, "1": 0.3}
        study_on_disk.edit_task(study, "tinybert", 1, task, scores=scores)
    assert words(study) == ["few fine-tuning seeds"]
    assert "Students are fine-tuned with 2 seeds each" in objections(results.load(study), "score")[0].sentence


def test_before_fine_tuning_nothing_is_said_of_it(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(), finetuned=False)
    assert words(directory) == []
