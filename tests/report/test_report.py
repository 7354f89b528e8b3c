import csv
import json
import re
import shutil

import pytest
import study_on_disk
from tolerances import HAND_WORKED_STATISTIC_RELATIVE

from kd_megatron.errors import OutputError
from kd_megatron.report.study.page import write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = study_on_disk.write_study(tmp_path_factory.mktemp("s") / "planted", study_on_disk.study_recipe())
    write_report(directory)
    return directory


def rows(directory, name):
    with (directory / "report" / "tables" / f"{name}.csv").open(newline="") as file:
        return {row[next(iter(row))]: row for row in csv.DictReader(file)}


def close(value):
    return pytest.approx(value, rel=HAND_WORKED_STATISTIC_RELATIVE)


def test_scores_are_the_hand_worked_ones(study):
    minilm = rows(study, "scores")["minilm"]
    assert float(minilm["score_CoLA"]) == close(0.33)  # (0.31 + 0.35 + 0.33) / 3
    # s = 0.02, half = 4.302653 * 0.02 / sqrt(3)
    assert float(minilm["score_CoLA_high"]) - float(minilm["score_CoLA"]) == close(0.04968275)
    assert float(minilm["score"]) == close(0.5916667)  # (0.575 + 0.605 + 0.595) / 3
    # paired with scratch: 0.075, 0.065, 0.075; s = 0.0057735, half = 4.302653 / 300
    assert float(minilm["difference"]) == close(0.0716667)
    assert float(minilm["difference_low"]) == close(0.0716667 - 0.0143422)
    assert minilm["difference_n"] == "3"
    assert rows(study, "scores")["scratch"]["difference"] == ""


def test_spending_is_the_hand_worked_one(study):
    scratch, minilm = rows(study, "spending")["scratch"], rows(study, "spending")["minilm"]
    # 6e13 FLOPs at 3e7 a token are 2e6 tokens, 244.1 steps of 8192; at 4.7e7 a token 155.8 steps
    assert (float(scratch["steps"]), float(minilm["steps"])) == (245, 156)
    assert float(scratch["tokens"]) == 245 * 8192
    assert float(scratch["unique_tokens"]) == 245 * 4096
    # charged: student, loss and data wait 1610 s, with teacher 2310 s
    assert float(minilm["hours"]) == close(2310 / 3600)
    assert float(minilm["relative_speed"]) == close((156 / 2310) / (245 / 1610))


def test_ledger_leaves_nothing_out(study):
    minilm = rows(study, "ledger_seconds")["minilm"]
    assert float(minilm["other"]) == 120 + 30 + 25
    assert sum(float(value) for key, value in minilm.items() if key != "arm") == 1500 + 700 + 90 + 20 + 175


def test_teachers_cost_three_ways(study):
    table = rows(study, "teacher_cost")
    spent = 156 * 8192 * 4.7e7
    assert float(table["minilm"]["excluded"]) == close(spent)
    assert float(table["minilm"]["included"]) == close(spent + 9e14)
    assert float(table["minilm"]["amortised"]) == close(spent + 9e14 / 9)  # three arms x three seeds are taught
    assert len({table["scratch"][kind] for kind in ("excluded", "included", "amortised")}) == 1


def test_teachers_unknown_cost_is_said(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())
    for summary in (directory / "arms").rglob("summary.json"):
        if "scratch" not in str(summary):
            unknown = {"path": "t", "parameters": 1, "cost_flops": None, "cost_source": ""}
            study_on_disk.edit_summary(summary.parent, teacher=unknown)
    write_report(directory)
    assert rows(directory, "teacher_cost")["minilm"]["included"] == ""
    assert "unknown" in (directory / "report" / "report.md").read_text()


def test_page_and_markdown_show_the_same_cells(study):
    page = (study / "report" / "index.html").read_text()
    markdown = (study / "report" / "report.md").read_text()
    for cell in ("59.2 ± 3.8", "+7.2 [+5.7, +8.6]", "SST-2*", "6.02e13", "shared by 9 students"):
        assert cell in page
        assert cell in markdown


def test_page_is_self_contained(study):
    page = (study / "report" / "index.html").read_text()
    assert all(target.startswith("data:") for target in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page))
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)
    assert page.count("data:image/png;base64,") == 5
    assert len(list((study / "report" / "figures").glob("*.png"))) == 5


def test_markdown_links_exist(study):
    for path in re.findall(r"\]\((figures/[^)]+)\)", (study / "report" / "report.md").read_text()):
        assert (study / "report" / path).is_file()


def test_results_are_json_in_base_units(study):
    data = json.loads((study / "report" / "results.json").read_text())
    assert data["reference"] == "scratch"
    minilm = next(row for row in data["tables"]["scores"] if row["arm"] == "minilm")
    assert minilm["score"]["mean"] == close(0.5916667)
    assert data["recipe"]["name"] == "planted"
    assert data["fingerprint"]["commit"] == "0123abc"


@pytest.mark.parametrize(
    "sentence",
    [
        "Student's t over 3 seeds",
        "Too few students for a verdict",
        "intervals at 95 % from 3 students with 1 fine-tuning each hold a mean score in 49 % of simulated studies",
        "not corrected for picking the best of 4 arms",
        "selected on the dev split",
        "SST-2 is scored on a partial or substitute split: a tenth of the rows.",
        "minilm gives no gradient to 1 parameter tensor (encoder.layer.2.output.dense.weight)",
        "All arms use one learning rate (0.001)",
        "The texts keep their own licences.",
        "does not include the teacher's own training",
        "0123abc",
        "Allowed differences between arms beside the objective: none.",
    ],
)
def test_caveats_and_method(study, sentence):
    assert sentence in (study / "report" / "report.md").read_text()


def test_caveats_follow_the_fine_tuning(tmp_path):
    finetune = study_on_disk.recipe_data()["finetune"]
    finetune |= {"selection": {"on": "train_slice"}, "halving": True, "seeds": [0, 1, 2], "untrained_top": "drop"}
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(finetune=finetune))
    write_report(directory)
    markdown = (directory / "report" / "report.md").read_text()
    assert (
        "The best of 2 fine-tuning settings is selected on 10% of the training rows, which no arm trains on" in markdown
    )
    assert "with up to 3 seeds of fine-tuning per setting; scores are on the dev split" in markdown
    assert "fine-tuning leaves out the encoder's layers that they are in" in markdown


def test_one_seed(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1))
    write_report(directory)
    assert rows(directory, "scores")["minilm"]["score_low"] == ""
    markdown = (directory / "report" / "report.md").read_text()
    assert "One seed: no interval can be given" in markdown
    assert "+7.5 (1 seed)" in markdown
    assert "±" not in markdown.split("Mean over seeds")[0]


def test_unfinished_study_says_what_is_missing(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe())
    shutil.rmtree(directory / "arms" / "tinybert")
    shutil.rmtree(directory / "arms" / "minilm" / "seed_2")
    shutil.rmtree(directory / "finetune" / "vanilla_kd" / "seed_0")
    study_on_disk.edit_summary(directory / "arms" / "scratch" / "seed_1", status="running")
    write_report(directory)
    markdown = (directory / "report" / "report.md").read_text()
    for piece in ("pretraining of tinybert, seed 0", "pretraining of minilm, seed 2", "pretraining of scratch, seed 1"):
        assert piece in markdown
    assert "fine-tuning of vanilla_kd, seed 0" in markdown
    assert "DIFFERS" in markdown  # the arms do not have the same seeds
    assert rows(directory, "scores")["minilm"]["difference_n"] == "1"  # seed 0 alone is in both
    assert "tinybert" not in rows(directory, "scores")


def test_study_without_any_result(tmp_path):
    directory = tmp_path / "s"
    study_on_disk.write_study(directory, study_on_disk.study_recipe())
    shutil.rmtree(directory / "arms")
    page = write_report(directory).read_text()
    assert "there is no answer" in page


def test_without_scratch_the_first_arm_is_the_reference(tmp_path):
    arms = {name: study_on_disk.ARMS[name] for name in ("vanilla_kd", "minilm")}
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(arms=arms))
    write_report(directory)
    assert "difference to vanilla_kd" in (directory / "report" / "report.md").read_text()


def test_report_is_written_again_from_scratch(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1))
    write_report(directory)
    (directory / "report" / "stale.txt").write_text("old")
    write_report(directory)
    assert not (directory / "report" / "stale.txt").exists()
    assert not (directory / "report.partial").exists()


def test_names_from_recipes_are_escaped(tmp_path):
    recipe = study_on_disk.study_recipe(num_seeds=1, description="<script>alert(1)</script>")
    page = write_report(study_on_disk.write_study(tmp_path / "s", recipe)).read_text()
    assert "<script>" not in page


def test_a_directory_that_is_no_study(tmp_path):
    with pytest.raises(OutputError, match="is not a study"):
        write_report(tmp_path)


def test_a_damaged_summary_is_named(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1))
    summary = directory / "arms" / "minilm" / "seed_0" / "summary.json"
    summary.write_text(summary.read_text()[:100])
    with pytest.raises(OutputError, match=r"minilm/seed_0/summary\.json is not valid JSON"):
        write_report(directory)
