"""Own heads stand next to the probe, and a probe that is far from them is said not to have converged."""

import pytest
import study_on_disk
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.analysis import comparisons, results
from kd_megatron.analysis.fitness import objections
from kd_megatron.report.study import own_heads, probe_table
from kd_megatron.report.study.page import write_report

GAP = {"scratch": 0.5, "vanilla_kd": 0.4}


def study(tmp_path, gaps):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())
    for arm, gap in gaps.items():
        for seed in range(3):
            probe = study_on_disk.PROBE[arm][seed]
            validation = {"probe_mlm_loss": probe, "probe_mlm_accuracy": 0.2, "mlm_loss": probe - gap}
            validation |= study_on_disk.CONVERGED
            study_on_disk.edit_summary(directory / "arms" / arm / f"seed_{seed}", validation=validation)
    return directory


def test_arms_with_a_trained_head_have_a_row_and_the_difference_is_paired(tmp_path):
    found = own_heads.table(results.load(study(tmp_path, GAP)))
    assert [row["arm"] for row in found.rows] == ["scratch", "vanilla_kd"]
    scratch, vanilla = found.rows
    probe = study_on_disk.PROBE
    expected = sum(probe["vanilla_kd"][s] - probe["scratch"][s] for s in range(3)) / 3 + 0.1
    assert vanilla["difference"].mean == pytest.approx(expected, rel=HAND_WORKED_STATISTIC_RELATIVE)
    assert scratch["difference"] is None
    assert scratch["gap"].mean == pytest.approx(0.5, rel=HAND_WORKED_STATISTIC_RELATIVE)
    assert vanilla["own_loss"].n == 3


def test_a_probe_far_from_the_heads_is_named(tmp_path):
    page = write_report(study(tmp_path, GAP)).with_name("report.md").read_text(encoding="utf-8")
    assert "The probe is unfit: where students have trained heads, its loss is 0.40 to 0.50 nats" in page
    assert "By the students' own heads" in page


def test_a_probe_near_the_heads_is_not(tmp_path):
    found = results.load(study(tmp_path, {"scratch": 0.04, "vanilla_kd": 0.01}))
    assert objections(found, "probe_loss") == []


def test_without_trained_heads_there_is_no_table(tmp_path):
    found = results.load(study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe()))
    assert own_heads.table(found) is None
    assert own_heads.own_heads(found) is None


@pytest.mark.parametrize(
    ("facts", "word"), [({"probe_converged": False}, "probe unconverged"), (None, "convergence not recorded")]
)
def test_a_probe_that_has_not_converged_gives_no_verdict(tmp_path, facts, word):
    directory = study(tmp_path, {})
    run = directory / "arms" / "minilm" / "seed_1"
    losses = {"probe_mlm_loss": 4.05, "probe_mlm_accuracy": 0.2, "mlm_loss": None}
    study_on_disk.edit_summary(run, validation=losses | (study_on_disk.CONVERGED | facts if facts else {}))
    found = results.load(directory)
    assert [one.word for one in objections(found, "probe_loss")] == [word]
    assert {one.verdict for one in comparisons.overall(found, "probe_loss")} == {f"{word}: none"}
    assert objections(found, "own_loss") == []
    page = write_report(directory).with_name("report.md").read_text(encoding="utf-8")
    assert "It gives no verdict." in page


def test_how_the_probes_were_trained_is_a_table(tmp_path):
    directory = study(tmp_path, {})
    below = {"probe_tap_layer": 2, "probe_tap_mlm_loss": 4.2, "probe_mlm_loss": 4.05, **study_on_disk.CONVERGED}
    study_on_disk.edit_summary(directory / "arms" / "minilm" / "seed_1", validation=below)
    found = probe_table.table(results.load(directory))
    minilm = next(row for row in found.rows if row["arm"] == "minilm")
    assert (minilm["converged"], minilm["passes"], minilm["tap_loss"].mean) == ("3 of 3", 2.0, 4.2)
    assert (minilm["begins"], minilm["ends"]) == (5.0, 4.499)
