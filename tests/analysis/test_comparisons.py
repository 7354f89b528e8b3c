import json

import pytest
import study_on_disk
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.analysis import comparisons, results
from kd_megatron.errors import RecipeError
from kd_megatron.report.study import certainty_tables, tables
from kd_megatron.report.study.answer import answer
from kd_megatron.report.study.page import write_report


def read(tmp_path, protocol=study_on_disk.BY_SCORE, **arguments):
    recipe = study_on_disk.study_recipe(protocol=protocol, **arguments)
    return results.load(study_on_disk.write_study(tmp_path / "s", recipe))


def of(found, arm):
    return next(one for one in found if one.arm == arm)


def test_overall_differences_by_hand(tmp_path):
    minilm = of(comparisons.overall(read(tmp_path), "score"), "minilm")
    # 0.075, 0.065, 0.075: mean 0.0716667, s = 0.0057735, t = 21.5; three arms: t(1 - 0.05 / 6, 2) = 7.6488
    assert minilm.num_comparisons == 3
    assert minilm.corrected.high - minilm.difference.mean == pytest.approx(7.6488 / 300, rel=1e-4)
    # p = 2 P(T_2 > 21.5) = 1 - 21.5 / sqrt(2 + 21.5^2); the smallest of three
    assert minilm.p_value == pytest.approx(1 - 21.5 / (2 + 21.5**2) ** 0.5, rel=HAND_WORKED_STATISTIC_RELATIVE)
    assert minilm.p_holm == pytest.approx(3 * minilm.p_value)
    # g = 0.0716667 / 0.0057735 * J(2), J(2) = 1 / sqrt(pi)
    assert minilm.effect_size == pytest.approx(21.5 / 3**0.5 / 3.141592653589793**0.5)
    assert minilm.verdict == "better"


def test_all_contrasts_of_a_report_are_one_family_without_a_protocol(tmp_path):
    study = read(tmp_path, protocol=None)
    found = comparisons.declared(study)
    assert len(found) == 3 * (2 + 2)  # arms x (average, loss, two tasks); no own heads here, which count all the same
    assert {one.num_comparisons for one in found} == {3 * (2 + 3)}
    assert {(one.role, one.verdict) for one in found} == {("exploratory", "too few students: none")}
    assert [one.task for one in comparisons.by_task(study, "vanilla_kd")] == ["CoLA", "SST-2"]
    assert comparisons.by_task(study, "scratch") == []


def test_primary_contrasts_are_a_family_of_their_own_and_come_first(tmp_path):
    study = read(tmp_path)
    roles = {(one.quantity, one.role, one.num_comparisons) for one in comparisons.declared(study)}
    assert roles == {("score", "primary", 3), ("probe_loss", "secondary", 15), ("task", "secondary", 15)}
    assert of(comparisons.overall(study, "score"), "vanilla_kd").verdict == "undecided"
    rest = {one.verdict for one in comparisons.declared(study) if one.role == "secondary"}
    assert rest == {"primary undecided: none"}
    table = certainty_tables.differences(study)[0]
    assert {row["role"] for row in table.rows} == {"primary", "secondary"}
    assert "3 primary contrasts hold together at 95 %" in table.note


def test_every_pair_is_a_table_and_corrected_for_all_of_them(tmp_path):
    study = read(tmp_path)
    found = {(one.arm, one.other): one for one in comparisons.every_pair(study, "score")}
    scratch, vanilla_kd, minilm, tinybert = study.arms
    assert list(found) == [
        (vanilla_kd, scratch), (minilm, scratch), (tinybert, scratch),
        (minilm, vanilla_kd), (tinybert, vanilla_kd), (tinybert, minilm),
    ]  # fmt: skip
    assert found[minilm, scratch] == of(comparisons.overall(study, "score"), "minilm")
    # three pairs of others in five quantities: t(1 - 0.05 / 30, 2) = 17.2772 beside 4.3027 for one
    pair = found[tinybert, minilm]
    assert pair.num_comparisons == 15
    wider = pair.corrected.half_width / pair.difference.half_width
    assert wider == pytest.approx(17.2772 / 4.302653, rel=1e-4)
    both = [study.by_seed(arm, "score", None) for arm in (tinybert, minilm)]
    by_hand = [both[0][seed] - both[1][seed] for seed in study.recipe.seeds]
    assert pair.difference.mean == pytest.approx(sum(by_hand) / len(by_hand))
    table = next(one for one in certainty_tables.differences(study) if one.name == "differences_of_pairs")
    assert len(table.rows) == 2 * 6
    assert [column.heading for column in table.columns][:2] == ["arm", "minus"]
    two = read(tmp_path / "two", arms={name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")})
    assert "differences_of_pairs" not in [one.name for one in certainty_tables.differences(two)]


def test_lower_loss_is_better(tmp_path):
    tinybert = of(comparisons.overall(read(tmp_path), "probe_loss"), "tinybert")
    assert tinybert.difference.mean > 0
    assert not tinybert.is_better


def test_a_winner_is_ahead_of_the_runner_up_too(tmp_path, monkeypatch):
    named = study_on_disk.BY_SCORE | {"arms": ["minilm"]}
    study = read(tmp_path, protocol=named)
    assert comparisons.overall(study, "score")[1].verdict == "better"
    assert comparisons.winner(study, "score") is None  # tinybert is too near
    assert tables.scores(study).strong == frozenset()
    monkeypatch.setitem(study_on_disk.SCORES, "tinybert", study_on_disk.SCORES["scratch"])
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm", "tinybert")}
    clear = read(tmp_path / "clear", protocol=named, arms=arms)
    assert comparisons.winner(clear, "score") == "minilm"
    # t(1 - 0.05 / 20, 2) = 14.1: leads of minilm have t of 17.3 in CoLA and of 13 in SST-2
    assert tables.scores(clear).strong == {(0, "probe_loss"), (1, "score"), (1, "score_CoLA")}


def test_bold_cells_are_bold_in_both_renderings(tmp_path):
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
    recipe = study_on_disk.study_recipe(arms=arms, protocol=study_on_disk.BY_SCORE)
    directory = study_on_disk.write_study(tmp_path / "s", recipe)
    page = write_report(directory).read_text()
    assert "<strong>59.2 ± 3.8</strong>" in page
    assert "**59.2 ± 3.8**" in (directory / "report" / "report.md").read_text()
    assert "<strong>52.0" not in page


def test_a_difference_that_does_not_survive_correction_is_not_claimed(tmp_path, monkeypatch):
    # differences to scratch by seed: 0.04, 0.02, 0.03: t = 5.196, beyond 4.303 (one comparison), within 7.649 (three)
    monkeypatch.setitem(study_on_disk.SCORES, "minilm", {"CoLA": [0.28, 0.30, 0.29], "SST-2": [0.80, 0.82, 0.81]})
    monkeypatch.setitem(study_on_disk.SCORES, "tinybert", study_on_disk.SCORES["scratch"])
    monkeypatch.setitem(study_on_disk.SCORES, "vanilla_kd", study_on_disk.SCORES["scratch"])
    study = read(tmp_path)
    minilm = of(comparisons.overall(study, "score"), "minilm")
    assert minilm.difference.excludes_zero
    assert minilm.verdict == "undecided"
    said = answer(study)
    assert said.endswith(
        "zero is outside the first and inside the second: these seeds cannot tell minilm from scratch."
    )
    assert "corrected for 3 primary contrasts" in said
    assert tables.scores(study).strong == frozenset()


def test_no_variation_is_no_evidence(tmp_path, monkeypatch):
    monkeypatch.setitem(study_on_disk.SCORES, "scratch", {"CoLA": [0.0] * 3, "SST-2": [0.5] * 3})
    monkeypatch.setitem(study_on_disk.SCORES, "minilm", {"CoLA": [0.1] * 3, "SST-2": [0.5] * 3})
    study = read(tmp_path, arms={name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")})
    assert of(comparisons.overall(study, "score"), "minilm").verdict == "no variation: undecided"
    assert comparisons.winner(study, "task", "CoLA") is None


def test_one_seed_has_a_message_and_no_table(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1))
    write_report(directory)
    said = (directory / "report" / "report.md").read_text()
    assert "No table of differences: an interval needs at least 2 seeds that an arm and scratch share" in said
    assert "corrected interval |" not in said
    assert not (directory / "report" / "tables" / "differences.csv").exists()


def test_bootstrap_with_three_seeds_is_refused_before_anything_is_written(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())
    with pytest.raises(RecipeError, match="at least 10 seeds"):
        write_report(directory, "bootstrap")
    assert not (directory / "report.partial").exists()


def test_both_sources_of_noise(tmp_path):
    study = read(tmp_path)
    assert certainty_tables.variance(study) is None  # one fine-tuning seed
    for seed, scores in enumerate(([0.1, 0.3], [0.3, 0.5], [0.7, 1.1])):
        path = study.directory / "finetune" / "minilm" / f"seed_{seed}" / "summary.json"
        summary = json.loads(path.read_text())
        summary["tasks"]["CoLA"]["scores"] = dict(zip("01", scores, strict=True))
        summary["tasks"]["SST-2"]["scores"] = {"0": 0.5, "1": 0.5, "2": 0.5}
        path.write_text(json.dumps(summary))
    rows = certainty_tables.variance(results.load(study.directory)).rows
    assert [(row["arm"], row["quantity"]) for row in rows] == [
        ("minilm", "average"),
        ("minilm", "CoLA"),
        ("minilm", "SST-2"),
    ]
    # test_statistics.py works this case by hand: 2 and sqrt(11), of values ten times as large; the average halves them
    assert rows[1]["finetuning"] == pytest.approx(0.2)
    assert rows[1]["pretraining"] == pytest.approx(0.11**0.5)
    assert rows[0]["finetuning"] == pytest.approx(0.1)
    assert rows[2]["pretraining"] == rows[2]["finetuning"] == 0.0
