"""A report for a repository, and the same report again from the packed study in it."""

import json
import shutil
from pathlib import Path

import pytest
import study_on_disk

from kd_megatron.analysis import results
from kd_megatron.cli import main as cli
from kd_megatron.errors import DataError, OutputError, RecipeError
from kd_megatron.report import packed as raw
from kd_megatron.report.page import drawing
from kd_megatron.report.publish import publish
from kd_megatron.report.study.page import write_report


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def coarse_figures():
    """Ten times fewer pixels: how they are drawn is tested elsewhere."""
    fine = drawing.STYLE["savefig.dpi"]
    drawing.STYLE["savefig.dpi"] = fine / 3
    yield
    drawing.STYLE["savefig.dpi"] = fine


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """With what a run leaves beside its findings, and places of this machine in its files."""
    place = tmp_path_factory.mktemp("machine") / "planted"
    recipe = study_on_disk.study_recipe(data={"shards": [{"path": f"{place.parent}/shards/wiki"}]})
    directory = study_on_disk.write_study(place, recipe)
    run = directory / "arms" / "minilm" / "seed_0"
    summary = json.loads((run / "summary.json").read_text())
    study_on_disk.edit_summary(run, teacher=summary["teacher"] | {"path": str(place / "teacher" / "export")})
    (run / "checkpoints" / "step_5").mkdir(parents=True)
    (run / "checkpoints" / "step_5" / "summary.json").write_text("{}")
    (run / "export").mkdir()
    (run / "export" / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture(scope="module")
def published(study, tmp_path_factory):
    target = tmp_path_factory.mktemp("repository") / "docs" / "results" / "planted"
    publish(study, target)
    return target


def test_what_is_published(published):
    files = contents(published)
    assert {"report.md", "results.json", "raw.json", "tables/scores.csv", "figures/scores.png"} <= files.keys()
    assert "index.html" not in files  # its figures would be in the repository twice
    assert not any("partial" in name for name in files)


def test_the_packed_study_gives_the_same_files_again(published, tmp_path, capsys):
    assert cli.main(["report", str(published / "raw.json"), "--to", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "to" / "report.md")
    assert contents(tmp_path / "to") == contents(published)


def test_beside_itself_it_is_written_with_its_page(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / "report.md").write_text("old")
    (copy / "figures" / "of_an_old_version.png").write_bytes(b"")
    (copy / "README.md").write_text("somebody's own")
    assert publish(copy) == copy / "index.html"
    after = contents(copy)
    assert b"data:image/png" in after.pop("index.html")
    assert after.pop("README.md") == b"somebody's own"
    assert after == contents(published)


def test_the_same_numbers_as_the_studys_own_report(study, published):
    write_report(study)
    here, there = (json.loads((place / "results.json").read_text()) for place in (study / "report", published))
    differing = {key for key in here if here[key] != there[key]}
    assert differing == {"recipe"}  # the place of the shards
    assert there["recipe"]["data"]["shards"][0]["path"] == "wiki"


def test_no_place_of_this_machine_is_published(study, published):
    assert str(study.parent) in (study / "study.yaml").read_text()
    for name, content in contents(published).items():
        assert str(study.parent).encode() not in content, name
        assert b"/tmp/" not in content, name


def test_what_lies_beside_findings_is_not_packed(published):
    files = raw.read(published / "raw.json").files
    runs = {f"arms/{arm}/seed_{seed}/{name}" for arm in study_on_disk.ARMS for seed in range(3) for name in raw.PACKED}
    assert {name for name in files if name.startswith("arms/")} == runs - {
        name for name in runs if "yaml" in name or "machines" in name
    }


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("/home/somebody/models/bert", "bert"),
        ("~/models/bert/", "bert"),
        ("teacher at /home/somebody/models/bert, frozen", "teacher at bert, frozen"),
        (
            "https://huggingface.co/google-bert/bert-base-uncased",
            "https://huggingface.co/google-bert/bert-base-uncased",
        ),
        ("$KD_DATA/glue", "$KD_DATA/glue"),
        ("../models/bert", "../models/bert"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("tokens/s, 1/2, a / b", "tokens/s, 1/2, a / b"),
        (f"{Path.cwd()}/data/wiki", "data/wiki"),
        (float("nan"), None),
    ],
)
def test_places_are_cut_and_nothing_else(text, packed):
    assert raw.without_places({"key": [text]}) == {"key": [packed]}


def test_an_arm_may_be_called_like_a_directory_that_is_left_out(tmp_path):
    arms = {"scratch": {"objective": "scratch"}, "report": study_on_disk.ARMS["minilm"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(study_on_disk.PROBE, "report", study_on_disk.PROBE["minilm"])
        patch.setitem(study_on_disk.SCORES, "report", study_on_disk.SCORES["minilm"])
        directory = study_on_disk.write_study(tmp_path / "finetune", study_on_disk.study_recipe(arms=arms))
    (directory / "stale").mkdir()
    (directory / "stale" / "summary.json").write_text("{}")
    again, _ = raw.pack(directory).unpack(tmp_path / "unpacked")
    assert results.load(again).missing == []
    assert not (again / "stale").exists()


def test_long_metrics_keep_validations_and_both_ends(tmp_path):
    directory = study_on_disk.write_study(tmp_path / "s", study_on_disk.study_recipe(num_seeds=1))
    rows = [{"step": step, "loss": 1.0} for step in range(1, 1001)]
    rows.insert(333, {"step": 333, "validation/probe_mlm_loss": 4.0})
    (directory / "arms/scratch/seed_0/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = raw.pack(directory).files["arms/scratch/seed_0/metrics.jsonl"]
    assert len(kept) == raw.MOST_TRAINING_ROWS + 1
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert rows[333] in kept
    assert [row["step"] for row in kept] == sorted(row["step"] for row in kept)


def test_studies_beside_and_the_kind_of_interval_are_packed(tmp_path):
    studies = [
        study_on_disk.write_study(tmp_path / name, study_on_disk.study_recipe(num_seeds=1, budget={"flops": budget}))
        for name, budget in (("one", 6e13), ("two", 12e13))
    ]
    packed = raw.pack(studies[0], "bootstrap", studies[1:])
    packed.write(tmp_path / "raw.json")
    assert raw.read(tmp_path / "raw.json") == packed
    study, others = packed.unpack(tmp_path / "unpacked")
    assert raw.pack(study, "bootstrap", others) == packed
    with pytest.raises(RecipeError, match="bootstrap"):  # as packed, and one seed is too few
        publish(tmp_path / "raw.json", tmp_path / "to")


def test_scores_of_others_go_with_a_fine_tuning_alone(published):
    assert cli.main(["report", str(published), "--published", "x.json"]) == RecipeError.exit_code


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format": 2, "interval": "t", "studies": [{"study.yaml": {}}]}',
        '{"format": 1, "interval": "t", "studies": []}',
        '{"format": 1, "interval": "t", "studies": [{"arms/x/summary.json": {}}]}',
        '{"format": 1, "interval": "t", "studies": [{"study.yaml": {}, "../../evil.json": {}}]}',
        '{"format": 1, "interval": "t", "studies": [{"study.yaml": {}, "/evil.json": {}}]}',
        '{"format": 1, "interval": "t", "studies": [{"study.yaml": {}, "arms/run.py": ""}]}',
    ],
)
def test_a_damaged_or_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "raw.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read as a packed study"):
        publish(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(OutputError, match="is not a study"):
        publish(tmp_path, tmp_path / "to")


def test_files_that_no_report_wrote_stay(study, tmp_path):
    """Somebody's own directory may have figures and tables too."""
    own = [
        tmp_path / "figures" / "mine.png",
        tmp_path / "tables" / "mine.csv",
        tmp_path / "figures" / "source" / "a.py",
    ]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    publish(study, tmp_path)
    assert [path.read_text() for path in own] == ["mine"] * 3
    left = tmp_path / "figures" / "of_before.png"
    left.write_bytes(b"a figure that the new report does not have")
    publish(study, tmp_path)
    assert not left.exists(), "of the report that was there"
    assert own[2].exists()
