"""Controls are rows below the arms, named as such; what is missing is said and leaves no study unfinished."""

import json

import pytest
import study_on_disk

from kd_megatron.analysis import comparisons, results
from kd_megatron.analysis.run_checks import run_findings
from kd_megatron.report import packed
from kd_megatron.report.study import own_heads, tables
from kd_megatron.report.study.page import write_report


def plant(study, names=("untrained", "teacher")):
    """Finished controls, fine-tuned on both tasks."""
    for name in names:
        where = study / "controls" / name
        study_on_disk.write_finetune(where / "finetune", "scratch", 0)
        validation = {"probe_mlm_loss": 5.0, "mlm_loss": 4.5}
        summary = {"status": "finished", "control": name, "parameters": 7, "validation": validation}
        (where / "summary.json").write_text(json.dumps(summary))
        (where / "export").mkdir()
        (where / "export" / "config.json").write_text("{}")
    return study


@pytest.fixture
def study(tmp_path):
    return study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())


def test_they_stand_below_the_arms_and_are_compared_with_none(study):
    before = results.load(study)
    plain = [comparisons.declared(before), run_findings(before)]
    loaded = results.load(plant(study))
    table = tables.scores(loaded)
    assert [row["arm"] for row in table.rows] == [
        *study_on_disk.ARMS,
        "untrained student (control)",
        "teacher (control)",
        "majority class (control)",
    ]
    untrained, _, majority = table.rows[-3:]
    assert (untrained["probe_loss"].mean, untrained["probe_loss"].has_interval) == (5.0, False)
    assert untrained["score_CoLA"].mean == 0.2
    assert untrained["score"].mean == pytest.approx((0.2 + 0.8) / 2)
    assert (majority["score_SST-2"].mean, majority["score"].mean) == (0.5, 0.25)
    assert "probe_loss" not in majority
    assert "missing" not in table.note
    assert all(row < len(study_on_disk.ARMS) for row, _ in table.strong)
    assert loaded.arms == before.arms
    assert [comparisons.declared(loaded), run_findings(loaded)] == plain


def test_own_heads_have_them_where_arms_have_heads(study):
    assert own_heads.table(results.load(plant(study))) is None
    for seed in range(3):
        validation = {"probe_mlm_loss": 3.9, "mlm_loss": 3.8}
        study_on_disk.edit_summary(study / "arms" / "scratch" / f"seed_{seed}", validation=validation)
    rows = own_heads.table(results.load(study)).rows
    assert [row["arm"] for row in rows] == ["scratch", "untrained student (control)", "teacher (control)"]
    assert (rows[1]["own_loss"].mean, rows[1]["gap"].mean) == (4.5, 0.5)


def test_a_study_without_them_is_finished_and_says_so(study):
    loaded = results.load(study)
    assert (loaded.missing, loaded.missing_controls) == ([], ["the untrained student", "the teacher"])
    page = write_report(study).with_name("report.md").read_text(encoding="utf-8")
    assert "Control rows are missing (the untrained student, the teacher)" in page
    assert "The study is not finished" not in page
    assert "majority class (control)" in page


def test_one_that_is_not_fine_tuned_yet_is_said(study):
    plant(study)
    (study / "controls" / "teacher" / "finetune" / "summary.json").unlink()
    assert results.load(study).missing_controls == ["fine-tuning of the teacher"]
    assert tables.scores(results.load(study)).rows[-2]["score"] is None


def test_switched_off_is_said_and_not_missing(tmp_path):
    recipe = study_on_disk.study_recipe(controls={"teacher": False, "untrained": False})
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    assert results.load(directory).missing_controls == []
    page = write_report(directory).with_name("report.md").read_text(encoding="utf-8")
    assert "The recipe switches control rows off: the untrained student, the teacher." in page


def test_a_packed_study_has_them(study, tmp_path):
    plant(study)
    raw = packed.pack(study)
    kept = sorted(name for name in raw.files if name.startswith("controls/"))
    parts = ("finetune/summary.json", "summary.json")
    assert kept == [f"controls/{name}/{part}" for name in ("teacher", "untrained") for part in parts]
    again, _ = raw.unpack(tmp_path / "again")
    there, here = (tables.scores(results.load(where)).plain_rows() for where in (again, study))
    assert there == here
