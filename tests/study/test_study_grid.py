"""A grid of studies: its cells, what they share, resuming; leads and their growth against hand-worked numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import study_on_disk
import yaml
from pydantic import ValidationError
from tiny_study import tiny_study, write_inputs

from kd_megatron.analysis import leads, results, summaries
from kd_megatron.analysis.measure import PROBE, SCORE
from kd_megatron.errors import OutputError
from kd_megatron.recipe import StudyRecipe
from kd_megatron.report.grid import page as grid_report
from kd_megatron.report.page import drawing
from kd_megatron.report.publish import publish
from kd_megatron.report.study.page import write_report
from kd_megatron.study import layout
from kd_megatron.study.cells import GridPoint, cell_directory, cell_recipe, places
from kd_megatron.study.claim import claim_study, recalibrate
from kd_megatron.study.runner import pieces, run_study

GRID = {"budgets": [1.0, 2.0], "unique_tokens": [512, None]}


# --- running ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRecipe, Path]:
    """Two cells, own teacher, two arms, one seed."""
    encoder = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    recipe = tiny_study(
        write_inputs(tmp_path_factory.mktemp("inputs")),
        teacher={"path": None, "train": {"encoder": encoder, "budget": {"tokens": 5 * 8 * 16}}},
        budget={"tokens": 12 * 8 * 16},
        grid={"unique_tokens": [512, None]},
    )
    recipe = recipe.model_copy(update={"arms": {name: recipe.arms[name] for name in ("scratch", "minilm")}})
    directory = tmp_path_factory.mktemp("study") / "s"
    run_study(recipe, directory, write_report)
    return recipe, directory


def test_cells_are_studies_with_the_grids_teacher(finished: tuple[StudyRecipe, Path]) -> None:
    recipe, directory = finished
    small, large = (results.load(cell_directory(directory, place)) for place in places(recipe))
    assert small.missing == large.missing == []
    assert {run.summary.unique_tokens for run in small.all_runs()} == {512}
    assert {run.summary.tokens for run in [*small.all_runs(), *large.all_runs()]} == {12 * 8 * 16}
    teacher = summaries.finished_run(layout.teacher_directory(directory))
    assert small.teacher == large.teacher == teacher
    made = results.load(directory).controls
    assert small.controls == large.controls == made
    assert all(control.summary for control in made.values())
    assert not list(directory.glob("cells/*/controls/*/export")), "cells have copies of what a report reads"
    assert teacher is not None
    learned_from = small.runs["minilm"][0].summary.teacher
    assert learned_from is not None
    assert learned_from.cost_flops == teacher.flops
    assert (cell_directory(directory, places(recipe)[0]) / "report" / "index.html").is_file()
    said = json.loads((directory / "report" / "results.json").read_text())
    assert said["missing"] == []
    assert [row["epochs_reference"] for row in said["tables"]["leads"]] == [3.0, 1.0]
    assert said["tables"]["growth_with_repetition"][0]["verdict"] == "one seed: no evidence"
    assert "one observation and no evidence" in said["answer"]


def test_a_finished_grid_is_left_alone_and_a_lost_piece_alone_is_done_again(
    finished: tuple[StudyRecipe, Path],
) -> None:
    recipe, directory = finished
    lost = layout.arm_directory(cell_directory(directory, places(recipe)[1]), "scratch", 0) / "summary.json"
    loss = json.loads(lost.read_text())["validation"]
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("summary.json")}
    assert [piece.is_finished() for piece in pieces(recipe, directory, write_report)] == [True] * 4 + [False]
    run_study(recipe, directory, write_report)
    assert all(piece.is_finished() for piece in pieces(recipe, directory, write_report))
    assert json.loads(lost.read_text())["validation"] == loss
    after = {path: path.stat().st_mtime_ns for path in directory.rglob("summary.json") if path != lost}
    assert after == before


def test_a_grid_may_grow_and_not_change(tmp_path: Path) -> None:
    claim_study(study_on_disk.study_recipe(grid=GRID), tmp_path / "s")
    claim_study(
        study_on_disk.study_recipe(grid={"budgets": [1.0, 2.0, 4.0], "unique_tokens": [512, 64, None]}), tmp_path / "s"
    )
    (tmp_path / "s" / "cells" / "budget_1_unique_512" / "arms" / "scratch" / "seed_0").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"grid\.budgets was \[1.0, 2.0, 4.0\], is \[2.0\]"):
        claim_study(study_on_disk.study_recipe(grid=GRID | {"budgets": [2.0]}), tmp_path / "s")
    with pytest.raises(OutputError, match=r"grid"):
        claim_study(study_on_disk.study_recipe(), tmp_path / "s")


def test_an_edit_of_what_ran_in_a_cell_is_refused_before_the_grid_takes_it(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    recipe = results.config.load(directory / "study.yaml", StudyRecipe)
    arms = recipe.arms | {"minilm": {"objective": "minilm", "num_relation_heads": 24}}
    edited = recipe.model_copy(update={"arms": arms})
    with pytest.raises(OutputError, match=r"stale: minilm \(seeds 0, 1, 2\); still valid: scratch"):
        claim_study(edited, directory)
    assert results.config.load(directory / "study.yaml", StudyRecipe) == recipe
    other = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"epochs": 9.0})})  # type: ignore[union-attr]
    with pytest.raises(OutputError, match="stale: all fine-tunings"):
        claim_study(other, directory)
    (directory / "calibration.json").write_text(json.dumps({"arms": {"minilm": {}}, "hardware": {"device": "other"}}))
    with pytest.raises(OutputError, match=r"there are runs with the steps .*minilm \(seeds 0, 1, 2\)"):
        recalibrate(directory)
    claim_study(edited, directory, ["minilm"])  # each cell then moves its own aside
    assert leads.load(directory).cells == []
    for place in places(edited):
        claim_study(cell_recipe(edited, place), cell_directory(directory, place), ["minilm"])
    assert [cell.study.arms for cell in leads.load(directory).cells] == [["scratch"]] * 2


def test_a_cell_of_another_recipe_is_named_and_not_used(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    path = cell_directory(directory, GridPoint(1.0, None)) / "study.yaml"
    cell = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(cell | {"training": cell["training"] | {"warmup_fraction": 0.2}}))
    grid = leads.load(directory)
    assert [one.place for one in grid.cells] == [GridPoint(1.0, 512)]
    said = "cell budget_1_unique_all, which has runs of another recipe (training.warmup_fraction was 0.2, is 0.06)"
    assert grid.missing == [said]


def test_a_cell_is_the_study_with_its_budget_and_pool() -> None:
    arms = {"scratch": {"objective": "scratch"}, "long": {"objective": "scratch", "budget.flops": 2e12}}
    recipe = study_on_disk.study_recipe(arms=arms, grid=GRID, allow_difference=["budget.flops"])
    names = [place.name for place in places(recipe)]
    assert names == ["budget_1_unique_512", "budget_1_unique_all", "budget_2_unique_512", "budget_2_unique_all"]
    cell = cell_recipe(recipe, places(recipe)[2])
    assert (cell.name, cell.budget.flops, cell.data.unique_tokens) == ("planted_budget_2_unique_512", 1.2e14, 512)
    assert cell.arms["long"]["budget.flops"] == 4e12
    assert cell.grid is None
    assert StudyRecipe.model_validate(cell.model_dump(mode="json")) == cell


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid": {"unique_tokens": [512, 512]}}, "names a value twice"),
        ({"grid": {"unique_tokens": []}}, "at least 1 item"),
        ({"grid": GRID, "data": {"shards": [{"path": "d"}], "unique_tokens": 64}}, "both say how much text"),
    ],
)
def test_grids_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        study_on_disk.study_recipe(**changes)


# --- what is concluded ------------------------------------------------------------------------------------


def plant(directory: Path, recipe: StudyRecipe, scores: dict[tuple[str, str], list[float]], often: float) -> Path:
    """A grid's directory with planted average scores, (cell, arm) -> by seed; small pools are read ``often`` times."""
    directory.mkdir(parents=True)
    (directory / "study.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    for place in places(recipe):
        where = study_on_disk.write_study(cell_directory(directory, place), cell_recipe(recipe, place))
        for arm in recipe.arms:
            for seed in recipe.seeds:
                run = layout.arm_directory(where, arm, seed)
                tokens = json.loads((run / "summary.json").read_text())["tokens"]
                unique = tokens if place.unique_tokens is None else tokens / often
                study_on_disk.edit_summary(run, unique_tokens=unique)
                average = scores[place.name, arm][seed]
                study_on_disk.plant_average(layout.finetune_directory(where, arm, seed), average)
    return directory


def planted(tmp_path: Path, often: float = 8.0, **changes: Any) -> Path:
    """Scratch at 50 points; minilm 1 point ahead on all text, and on repeated text 3, 4 and 5 points, by seed."""
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
    recipe = study_on_disk.study_recipe(arms=arms, grid={"unique_tokens": [512, None]}, **changes)
    scores = {
        ("budget_1_unique_512", "scratch"): [0.50, 0.50, 0.50],
        ("budget_1_unique_all", "scratch"): [0.50, 0.50, 0.50],
        ("budget_1_unique_512", "minilm"): [0.53, 0.54, 0.55],
        ("budget_1_unique_all", "minilm"): [0.51, 0.51, 0.51],
    }
    return plant(tmp_path / "s", recipe, scores, often)


def test_growth_is_a_difference_of_differences_by_hand(tmp_path: Path) -> None:
    grid = leads.load(planted(tmp_path))
    growth = leads.mean_growth(grid, "repetition", SCORE)
    assert growth is not None
    assert growth.epochs == (1.0, 8.0)
    assert (growth.low.mean, growth.high.mean) == pytest.approx((0.01, 0.04))
    half = 4.302652729911275 * 0.01 / 3**0.5  # t(0.975, 2) s / sqrt(n), of growths 0.02, 0.03, 0.04
    assert (growth.growth.mean, growth.growth.low, growth.growth.high) == pytest.approx(
        (0.03, 0.03 - half, 0.03 + half)
    )
    assert growth.verdict == "grows"
    said = grid_report.answer(grid)
    assert said.startswith(
        "Does the lead of distillation over scratch grow when its text repeats? Yes, as far as these"
    )
    assert (
        "minilm leads by +1.0 where text is read 1.0 times and +4.0 at 8.0 times, a growth of +3.0 [+0.5, +5.5]" in said
    )
    assert "which excludes zero" in said


def test_the_probes_loss_counts_downwards(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    for place, ahead in ((GridPoint(1.0, 512), 0.3), (GridPoint(1.0, None), 0.1)):
        for seed in range(3):
            for arm, loss in (("scratch", 4.0), ("minilm", 4.0 - ahead)):
                run = layout.arm_directory(cell_directory(directory, place), arm, seed)
                study_on_disk.edit_summary(run, validation={"probe_mlm_loss": loss})
    growth = leads.mean_growth(leads.load(directory), "repetition", PROBE)
    assert growth is not None
    assert growth.growth.mean == pytest.approx(0.2)
    assert growth.verdict == "no variation: undecided"
    by_score, by_loss = grid_report.answer(leads.load(directory)).split("?")[1].split(" These seeds cannot tell: ")
    assert by_score.startswith(" Yes, as far as these seeds tell: by mean score, ")
    assert by_loss.startswith("by held-out MLM loss (probe), minilm leads by +0.100 ")


def test_text_that_hardly_repeats_answers_nothing(tmp_path: Path) -> None:
    grid = leads.load(planted(tmp_path, often=1.2))
    assert leads.mean_growth(grid, "repetition", SCORE) is None
    assert grid_report.answer(grid).startswith("Nothing can be said of repetition")


def test_an_arm_without_a_result_in_a_cell_is_named_and_nothing_else_is_said(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    for seed in range(3):
        (
            layout.finetune_directory(cell_directory(directory, GridPoint(1.0, 512)), "minilm", seed) / "summary.json"
        ).unlink()
        (layout.arm_directory(cell_directory(directory, GridPoint(1.0, 512)), "minilm", seed) / "summary.json").unlink()
    said = grid_report.answer(leads.load(directory))
    assert "in the cells that are compared, minilm has no result in one of them." in said
    assert "no two finished cells" not in said


def test_seeds_that_a_grid_has_gained_are_missing_and_not_counted(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    recipe = yaml.safe_load((directory / "study.yaml").read_text())
    (directory / "study.yaml").write_text(yaml.safe_dump(recipe | {"seeds": [0, 1, 2, 3, 4]}))
    grid = leads.load(directory)
    assert grid.missing[0] == "4 students of cell budget_1_unique_512, which the recipe has gained"
    assert "Intervals are over 3 seeds" in "\n".join(grid_report.caveats(grid))
    write_report(directory)
    assert ", 2 arms, 3 seeds each." in (directory / "report" / "report.md").read_text()


def test_growths_of_several_arms_and_budgets_are_one_family(tmp_path: Path) -> None:
    recipe = study_on_disk.study_recipe(grid=GRID)
    scores = {
        (place.name, arm): [0.5 + 0.01 * number * seed + 0.02 * (place.budget == 2) for seed in range(3)]
        for number, arm in enumerate(recipe.arms)
        for place in places(recipe)
    }
    grid = leads.load(plant(tmp_path / "s", recipe, scores, often=4.0))
    found = leads.growths(grid, "repetition", SCORE)
    assert [(one.arms, one.level) for one in found[:2]] == [
        (("vanilla_kd",), "1 x budget"), (("vanilla_kd",), "2 x budget")
    ]  # fmt: skip
    assert {one.num_comparisons for one in found} == {6}
    with_budget = leads.mean_growth(grid, "budget", SCORE)
    assert with_budget is not None
    assert with_budget.growth.mean == pytest.approx(0.0)  # all arms gain alike
    assert with_budget.level == "mean over 2"
    assert "No" not in grid_report.answer(grid).split("?")[1]


def test_unfair_cells_conclude_nothing(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    cell = cell_directory(directory, GridPoint(1.0, 512))
    assert {growth.verdict for growth in leads.growths(leads.load(directory), "repetition", leads.SCORE)} >= {"grows"}
    study_on_disk.edit_summary(layout.arm_directory(cell, "minilm", 1), parameters=1)
    grid = leads.load(directory)
    assert grid_report.answer(grid).startswith("Nothing is concluded: arms with the same seed differ")
    assert {growth.verdict for growth in leads.growths(grid, "repetition", leads.SCORE)} == {"unfair: none"}


def record(directory: Path, recipe: StudyRecipe, place: GridPoint, **entries: str) -> list[str]:
    """Let all runs of a cell have recorded ``entries``, alike within the cell; what the grid then says of it."""
    for arm in recipe.arms:
        for seed in recipe.seeds:
            run = layout.arm_directory(cell_directory(directory, place), arm, seed)
            facts = json.loads((run / "summary.json").read_text())["fingerprint"]
            study_on_disk.edit_summary(run, fingerprint=facts | entries)
    return [said for said in grid_report.caveats(leads.load(directory)) if said.startswith("Not all runs")]


def test_cells_whose_runs_recorded_different_things_are_named(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    recipe = leads.load(directory).recipe
    assert record(directory, recipe, GridPoint(1.0, 512), commit="one") != []
    assert record(directory, recipe, GridPoint(1.0, None), commit="one") == []
    assert record(directory, recipe, GridPoint(1.0, 512), commit="another") == [
        "Not all runs recorded the same commit: another in 6 of budget_1_unique_512; one in 6 of budget_1_unique_all."
    ]


def test_other_text_is_named_where_the_pool_is_the_same(tmp_path: Path) -> None:
    arms = {name: study_on_disk.ARMS[name] for name in ("scratch", "minilm")}
    recipe = study_on_disk.study_recipe(arms=arms, grid={"budgets": [1.0, 2.0], "unique_tokens": [512, None]})
    scores = {(place.name, arm): [0.5] * 3 for place in places(recipe) for arm in arms}
    directory = plant(tmp_path / "s", recipe, scores, often=8.0)
    said = [record(directory, recipe, place, data=f"of {place.unique_tokens}") for place in places(recipe)]
    assert said[-1] == []
    assert record(directory, recipe, GridPoint(2.0, 512), data="else") == [
        "Not all runs recorded the same data: of 512 in 6 of budget_1_unique_512; else in 6 of budget_2_unique_512."
    ]


def test_the_report_has_its_parts_and_an_unfinished_grid_says_so(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    write_report(directory)
    page = (directory / "report" / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert (directory / "report" / "figures" / "lead_against_repetition.png").is_file()
    assert not (directory / "report" / "figures" / "lead_against_budget.png").exists()  # one budget
    tables = {path.name for path in (directory / "report" / "tables").glob("*.csv")}
    assert tables == {"leads.csv", "growth_with_repetition.csv", "cells.csv"}
    shutil.rmtree(cell_directory(directory, GridPoint(1.0, None)))
    write_report(directory)
    report = (directory / "report" / "report.md").read_text()
    assert "Not finished: cell budget_1_unique_all." in report
    assert "Nothing can be said of repetition" in report


def test_a_grid_is_committed_and_made_again_like_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawing.STYLE, "savefig.dpi", 40)
    directory = planted(tmp_path)
    publish(directory, tmp_path / "committed")
    shutil.rmtree(directory)
    publish(tmp_path / "committed" / "raw.json", tmp_path / "again")
    for name in ("report.md", "results.json", "raw.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "committed" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "again" / "raw.json").read_text()
    cells = list((tmp_path / "again" / "cells").iterdir())  # each with its own report
    assert len(cells) == 2
    assert all((cell / "report" / "report.md").is_file() for cell in cells)


def test_scores_over_other_tasks_are_not_compared_between_cells(tmp_path: Path) -> None:
    directory = planted(tmp_path)
    assert not leads.load(directory).averages_differ
    for seed in range(3):
        study_on_disk.edit_task(
            cell_directory(directory, GridPoint(1.0, 512)), "scratch", seed, "CoLA", num_collapsed=3
        )
    grid = leads.load(directory)
    assert grid.measures == [PROBE]
    said = " ".join(grid_report.caveats(grid))
    assert "budget_1_unique_512: SST-2; budget_1_unique_all: CoLA, SST-2" in said
