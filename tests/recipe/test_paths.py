"""What a recipe names stays where it may write: names are one part of a path, links out of a run are refused."""

from pathlib import Path

import pytest
import yaml

from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.recipe import CorpusRecipe, FinetuneRecipe, StudyRecipe, config
from kd_megatron.recipe.paths import (
    NAME_BYTES,
    PATH_BYTES,
    check_name,
    check_path,
    refuse_file_or_links_out,
    require_place,
)

ROOT = Path(__file__).resolve().parents[2]
BAD_NAMES = [
    "../x", "/etc", "a/b", "", ".", "..", ".hidden", "-rf", "a\0b", "a\nb", "a\n", " ", "a b", "a\\b", "~", "[red]",
    "$HOME", "é" * 3, "x" * (NAME_BYTES + 1),
]  # fmt: skip
GOOD_NAMES = ["debug", "paper_6l", "SST-2", "demo.3", "lr=1e-3", "a+b", "0", "a..b", "x" * NAME_BYTES]
BAD_PATHS = ["", " ", "a\0b", "a\nb", "x" * 256, "x/" * PATH_BYTES]
GOOD_PATHS = ["/big/disk/run", "../beside", "~/runs", "a b/é", "."]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused(name: str):
    with pytest.raises(ValueError, match="part of a path"):
        check_name(name)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_kept(name: str):
    assert check_name(name) == name
    assert (Path("/runs") / name).parent == Path("/runs")


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_no_file_system_has_is_refused(path: str):
    with pytest.raises(ValueError, match="a path"):
        check_path(path)


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_an_output_may_be_anywhere(path: str):
    assert check_path(path) == path


STUDY = yaml.safe_load((ROOT / "recipes/debug.yaml").read_text())
CORPUS = yaml.safe_load((ROOT / "recipes/data/debug.yaml").read_text())
FINETUNE = {"tasks": [{"name": "MRPC"}]}


@pytest.mark.parametrize(
    ("schema", "recipe", "override", "key"),
    [
        (StudyRecipe, STUDY, "name=../../etc", "name"),
        (StudyRecipe, STUDY, "name=/etc", "name"),
        (StudyRecipe, STUDY, 'name=""', "name"),
        (StudyRecipe, STUDY, "arms={../x: {objective: scratch}}", "arms.../x"),
        (StudyRecipe, STUDY, "arms={/abs: {objective: scratch}}", "arms./abs"),
        (StudyRecipe, STUDY, 'output="a\\0b"', "output"),
        (StudyRecipe, STUDY, "training.ds_config=../elsewhere/zero2", "training.ds_config"),
        (StudyRecipe, STUDY, 'teacher.cache={path: ""}', "teacher.cache.path"),
        (CorpusRecipe, CORPUS, "name=..", "name"),
        (CorpusRecipe, CORPUS, 'output=""', "output"),
        (FinetuneRecipe, FINETUNE, "tasks=[{name: ../../x, train: a.tsv, dev: b.tsv}]", "tasks.0.name"),
    ],
)
def test_a_recipe_that_would_lead_elsewhere_is_refused(tmp_path: Path, schema, recipe, override: str, key: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    config.load(path, schema)  # the recipe itself is a good one
    with pytest.raises(RecipeError, match="to fix: correct the") as caught:
        config.load(path, schema, [override])
    assert key in str(caught.value)


def test_links_that_lead_out_of_a_run_are_refused(tmp_path: Path):
    run, victim = tmp_path / "run", tmp_path / "precious.txt"
    (run / "checkpoints").mkdir(parents=True)
    victim.write_text("precious")
    (run / "inner").symlink_to(run / "checkpoints")
    refuse_file_or_links_out(run)  # a link that stays inside is no matter
    link = run / "checkpoints" / "metrics.jsonl.partial"
    link.symlink_to(victim)
    with pytest.raises(OutputError, match=r"metrics\.jsonl\.partial is a link to .*precious\.txt"):
        refuse_file_or_links_out(run)
    link.unlink()
    (run / "tensorboard").symlink_to(tmp_path / "not-there-yet")  # one that leads nowhere would be made there
    with pytest.raises(OutputError, match="is a link to"):
        refuse_file_or_links_out(run)


def test_a_run_directory_may_itself_be_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    refuse_file_or_links_out(tmp_path / "runs")
    refuse_file_or_links_out(tmp_path / "runs" / "new")


def test_a_file_is_no_output(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a directory"):
        refuse_file_or_links_out(tmp_path / "file")
    with pytest.raises(OutputError, match=r"lies below .*file, which is a file"):
        refuse_file_or_links_out(tmp_path / "file" / "runs" / "new")


def test_the_place_of_a_result_is_made_before_the_work(tmp_path: Path):
    require_place(tmp_path / "new" / "plan.json")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "plan.json", tmp_path / "new"):
        with pytest.raises(OutputError, match="cannot be written"):
            require_place(path)
