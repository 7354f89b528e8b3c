"""Parts of the report that need no figures: the published study beside this one, and each run by itself."""

import json

import pytest
import study_on_disk

from kd_megatron.analysis import results
from kd_megatron.analysis.statistics import Estimate
from kd_megatron.console import units
from kd_megatron.report.page import drawing
from kd_megatron.report.page.document import Bullets, TableBlock
from kd_megatron.report.study import published, run_details, tables
from kd_megatron.study.layout import arm_directory


@pytest.fixture
def load(tmp_path):
    def of(finetuned=True, **changes):
        recipe = study_on_disk.study_recipe(**changes)
        return results.load(study_on_disk.write_study(tmp_path / "s", recipe, finetuned))

    return of


def test_published_rows_are_those_of_the_study(load):
    rows = {row["arm"]: row for row in published.rows(load()).rows}
    assert list(rows) == list(study_on_disk.ARMS)
    assert rows["vanilla_kd"]["published_ratio"] == 2.6e9 / 4.6e9
    assert rows["vanilla_kd"]["published_difference"] == "\N{MINUS SIGN}0.4"
    assert rows["minilm"]["published_difference"] == "ahead (number not known to us)"
    assert rows["minilm"]["ratio"] == 156 / 245  # steps, as in test_report.py
    assert rows["minilm"]["difference"].n == 3


@pytest.mark.parametrize(
    ("changes", "name", "tokens"),
    [
        ({}, "6 layers, unlimited data", 4.6e9),
        ({"data": {"shards": [{"path": "d"}], "unique_tokens": 10**6}}, "6 layers, limited data", 27.9e9),
        (
            {"student": {"hidden_size": 64, "num_layers": 10, "num_attention_heads": 4, "intermediate_size": 64}},
            "12 layers, unlimited data",
            4.6e9,
        ),
    ],
)
def test_the_nearest_setting_is_shown(load, changes, name, tokens):
    study = load(**changes)
    assert published.setting(study)["name"] == name
    assert published.rows(study).rows[0]["published_tokens"] == tokens


def test_published_names_follow_the_objective(monkeypatch, load):
    for table in (study_on_disk.SCORES, study_on_disk.PROBE):
        monkeypatch.setitem(table, "mine", table["minilm"])
    study = load(arms={"scratch": {"objective": "scratch"}, "mine": {"objective": "minilm", "num_relation_heads": 12}})
    assert [row["published_name"] for row in published.rows(study).rows] == ["No-KD", "MiniLM"]


def test_what_differs_leaves_out_what_agrees(load):
    rows = {row["what"]: row for row in published.setup(load()).rows}
    assert rows["student"] == {"what": "student", "theirs": "6 layers x 768", "ours": "3 layers x 384"}
    assert rows["tasks"]["ours"] == "CoLA, SST-2"
    assert "first weights" not in rows  # random there and here


def test_no_arm_of_theirs_no_table(load):
    assert published.rows(load(arms={"scratch": {"objective": "scratch"}})) is None


def test_metrics_are_named_with_their_tasks(load):
    assert "points of 100 (Matthews correlation: CoLA; accuracy: SST-2)" in tables.scores(load()).note


@pytest.mark.parametrize(
    ("charge", "heading"),
    [
        (["student", "teacher", "loss", "data_wait"], ["waiting for data", "other, not charged"]),
        (["student", "teacher", "loss"], ["waiting for data, not charged", "other, not charged"]),
        (["student", "teacher", "loss", "data_wait", "teacher_for_others"], ["waiting for data", "other"]),
    ],
)
def test_time_is_called_not_charged_where_it_is_not(load, charge, heading):
    study = load(budget={"hours": 1.0, "charge": charge})
    assert [column.heading for column in tables.ledger(study, "seconds").columns][-2:] == heading


def test_error_bars_end_where_intervals_do():
    lopsided = Estimate(12, 0.1025, 0.013, 0.37)
    below, above = drawing.interval_bars([lopsided, Estimate(1, 2.0)], 100)
    assert [10.25 - below[0], 10.25 + above[0]] == pytest.approx([1.3, 37.0])
    assert (below[1], above[1]) == (0.0, 0.0)


def test_each_run_has_its_losses_ledger_and_fine_tuning(load):
    study = load()
    found = run_details.run_details(study)
    assert [one.summary for one in found][3] == "vanilla_kd, seed 0"
    bullets, on_the_way, ledger, finetuning = found[6].blocks  # minilm, seed 0
    assert isinstance(bullets, Bullets)
    assert isinstance(on_the_way, TableBlock)
    assert "156 steps" in bullets.items[0]
    shown = on_the_way.table.shown()
    assert shown[-2:] == [["100.0 %", "1.28M", "4.000", units.NOTHING], ["100.0 %", "1.28M", units.NOTHING, "4.100"]]
    assert [row["account"] for row in ledger.table.rows if row["charged"]] == [
        "student",
        "teacher",
        "loss",
        "data wait",
    ]
    assert sum(row["seconds"] for row in ledger.table.rows) == 1500 + 700 + 90 + 20 + 120 + 30 + 25
    assert finetuning.table.shown()[0] == ["CoLA", "31.0", "3", "3e-05", "32"]


def test_a_run_that_recorded_something_else_says_so(load):
    study = load()
    run = study.runs["minilm"][1]
    study_on_disk.edit_summary(
        arm_directory(study.directory, "minilm", 1), fingerprint=run.summary.fingerprint | {"data": "0badf00d"}
    )
    found = run_details.run_details(results.load(study.directory))
    said = {one.summary: one.blocks[0].items[1] for one in found}
    assert said["minilm, seed 1"] == "Recorded otherwise than in most runs: data is 0badf00d."
    assert said["minilm, seed 0"] == "Recorded as in most other runs."


def test_every_validation_is_in_the_csv_of_losses(load):
    rows = run_details.losses(load(finetuned=False)).rows
    assert len(rows) == 4 * 3 * 4  # arms, seeds, quarters of the budget
    assert rows[3] == {
        "arm": "scratch",
        "seed": 0,
        "step": 245,
        "tokens": 245 * 8192,
        "flops": 245 * 8192 * 3.0e7,
        "hours": 0.4,
        "budget_fraction": 1.0,
        "probe_loss": 3.90,
    }


def test_a_run_without_metrics_has_its_details_still(load):
    study = load()
    (arm_directory(study.directory, "minilm", 0) / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert run_details.run_details(results.load(study.directory))[6].blocks[1].table.rows == []
