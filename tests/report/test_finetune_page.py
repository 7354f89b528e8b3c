import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_encoder import make_model, sentences, write_tsv

from kd_megatron.cli.main import main
from kd_megatron.errors import DataError, OutputError
from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.grid.summary import t_interval
from kd_megatron.recipe import FinetuneRecipe
from kd_megatron.report.finetune import results
from kd_megatron.report.finetune.page import write_page

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and the files of a task with two labels and of a regression."""
    directory = tmp_path_factory.mktemp("page")
    make_model(directory / "tiny", seed=0)
    for split, num, seed in (("train", 48, 1), ("dev", 24, 2)):
        rows = sentences(num, seed)
        write_tsv(directory / f"{split}.tsv", rows)
        write_tsv(directory / f"{split}_value.tsv", [(text, f"{len(text) % 7}.5") for text, _ in rows])
    return directory


@pytest.fixture(scope="module")
def raw(data: Path) -> dict[str, Any]:
    own = {name: {split: str(data / f"{split}{name}.tsv") for split in ("train", "dev")} for name in ("", "_value")}
    return {
        "kind": "finetune",
        "tasks": [
            {"name": "reviews", **own[""], "max_train_examples": 40},
            {"name": "lengths", **own["_value"], "type": "regression"},
        ],
        "grid": {"learning_rates": [1e-3, 3e-3], "batch_sizes": [8]},
        "seeds": [0, 1],
        "epochs": 2,
        "evaluate_every_epochs": 1,
        "max_length": 16,
        "precision": "fp32",
    }


@pytest.fixture(scope="module")
def output(data: Path, raw: dict[str, Any]) -> Path:
    """A finished fine-tuning of two tasks, two settings and two seeds, with its page."""
    run_grid(data / "tiny", FinetuneRecipe.model_validate(raw), data / "out")
    write_page(data / "out")
    return data / "out"


def rows_of(output: Path, name: str) -> list[dict[str, str]]:
    with (output / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def test_the_table_is_the_summary(output: Path):
    summary, table = summary_of(output), {row["task"]: row for row in rows_of(output, "scores")}
    assert list(table) == ["reviews*", "lengths", "average"]
    for name, task in summary["tasks"].items():
        row = table[name + ("*" if name == "reviews" else "")]
        assert float(row["score"]) == pytest.approx(task["mean"])
        assert [float(row["score_low"]), float(row["score_high"])] == pytest.approx(task["interval"])
        assert (row["n"], row["num_runs"], row["num_dev"]) == ("2", "4", "24")
        assert float(row["learning_rate"]) == task["best_cell"]["learning_rate"]
        assert float(row["majority_score"]) == task["majority_score"] == {"reviews": 0.5, "lengths": 0.0}[name]
        assert row["collapsed"] == f"{task['num_collapsed']} of 2"
    average = table["average"]
    by_seed = [sum(task["scores"][seed] for task in summary["tasks"].values()) / 2 for seed in ("0", "1")]
    assert float(average["score"]) == pytest.approx(summary["average"])
    assert [float(average["score_low"]), float(average["score_high"])] == pytest.approx(t_interval(by_seed))


def test_the_grid_and_all_cells_are_there(output: Path):
    chosen = [(row["task"], float(row["learning_rate"])) for row in rows_of(output, "grid") if row["chosen"]]
    best = {name: task["best_cell"]["learning_rate"] for name, task in summary_of(output)["tasks"].items()}
    assert chosen == [("reviews*", best["reviews"]), ("lengths", best["lengths"])]
    cells = rows_of(output, "cells")
    assert len(cells) == 8
    assert len({cell["used_seed"] for cell in cells}) == 2
    assert {cell["used_seed"] for cell in cells}.isdisjoint({"0", "1"}), "seeds of this model's own"
    metrics = {(row["task"], row["metric"]) for row in rows_of(output, "metrics")}
    assert metrics == {("reviews*", "accuracy"), ("lengths", "pearson"), ("lengths", "spearman")}


def test_the_page_says_what_its_scores_are_of(output: Path):
    page = (output / "scores.md").read_text()
    assert "Fine-tuning of tiny" in page
    assert "best of 2 settings, selected on the dev rows it is read from" in page
    assert "* reviews: train: fixed random subset of 40 of 48" in page
    assert "| grid.learning_rates |" in page.replace("  ", " ")
    assert "| tasks.reviews.max_train_examples | 40 |" in page
    assert "| commit |" in page
    assert re.search(r"8 cells took \d+ seconds", page)
    figures = re.findall(r"\]\((figures/\w+\.png)\)", page)
    assert figures == [f"figures/{name}.png" for name in ("scores", "grid", "learning_curves", "dev_curves")]
    for figure in figures:
        assert (output / figure).read_bytes().startswith(b"\x89PNG")
    html = (output / "scores.html").read_text()
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r'(?:src|href)="(?!data:)', html), "nothing from outside"


def test_the_same_numbers_give_the_same_page(output: Path):
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in output.rglob("*") if path.suffix in (".md", ".csv", ".png")}

    before = files()
    write_page(output)
    assert files() == before
    assert not list(output.rglob("*partial*"))


def test_a_page_for_a_repository_names_no_place_of_this_machine(
    output: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = tmp_path / "results" / "tiny"
    others = {"rows": [{"model": "other", "source": "a card", "scores": {"reviews": 90.0}}], "remarks": ["Not equal."]}
    (tmp_path / "others.json").write_text(json.dumps(others))
    arguments = ["report", str(output), "--to", str(target), "--published", str(tmp_path / "others.json")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(target / "scores.md")
    kept = [path for path in target.rglob("*") if path.suffix in (".md", ".json", ".csv", ".html")]
    assert {path.name for path in kept} >= {
        "scores.md",
        "summary.json",
        "machines.json",
        "published.csv",
    }
    assert not (target / "scores.html").exists()
    assert not [path for path in kept if str(data) in path.read_text()]
    summary = summary_of(target)
    assert (summary["model"], summary["settings"]["tasks"][0]["train"]) == ("tiny", "train.tsv")
    assert summary["tasks"] == summary_of(output)["tasks"]
    mine, other, difference = rows_of(target, "published")
    assert float(mine["reviews"]) == pytest.approx(100 * summary["tasks"]["reviews"]["mean"])
    assert float(difference["reviews"]) == pytest.approx(float(mine["reviews"]) - 90)
    assert (other["lengths"], difference["lengths"]) == ("", "")
    assert "- Not equal." in (target / "scores.md").read_text()


def test_a_kept_page_is_written_again_from_itself(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_page(output, tmp_path / "kept")
    kept = {path.relative_to(tmp_path / "kept"): path.read_bytes() for path in (tmp_path / "kept").rglob("*.*")}
    assert main(["report", str(tmp_path / "kept"), "--to", str(tmp_path / "again")]) == 0
    again = {path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*.*")}
    assert again == kept
    assert main(["report", str(tmp_path / "kept")]) == 0
    assert {name: (tmp_path / "kept" / name).read_bytes() for name in kept} == kept
    assert (tmp_path / "kept" / "scores.html").is_file()
    lines = (tmp_path / "kept" / "cells.jsonl").read_text().splitlines()
    (tmp_path / "kept" / "cells.jsonl").write_text("\n".join(lines[1:]))
    assert main(["report", str(tmp_path / "kept")]) == OutputError.exit_code
    assert "no cell" in capsys.readouterr().err


def test_published_scores_that_cannot_be_used_are_refused(output: Path, tmp_path: Path):
    path = tmp_path / "others.json"
    for content in (
        "",
        "[]",
        '{"rows": [{"model": "a"}]}',
        '{"rows": [{"model":"a","source":"b","scores":{"c":"d"}}]}',
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=r"others\.json cannot be used"):
            write_page(output, tmp_path / "to", path)
    assert not (tmp_path / "to").exists()


def test_the_published_scores_of_the_repository_can_be_read():
    found = results.read_published(ROOT / "docs/results/glue_minilm/published.json")
    assert found.rows[0]["scores"]["CoLA"] == 47.5
    assert all(row["source"] for row in found.rows)


def test_what_is_not_finished_or_lost_is_named(output: Path, tmp_path: Path):
    with pytest.raises(OutputError, match="holds no finished fine-tuning"):
        write_page(tmp_path)
    copy = shutil.copytree(output, tmp_path / "copy")
    lost = next(copy.glob("reviews/cells/*.json"))
    lost.unlink()
    before = (copy / "scores.md").read_bytes()
    with pytest.raises(OutputError, match=re.escape(str(lost))):
        write_page(copy)
    assert (copy / "scores.md").read_bytes() == before


def test_report_of_a_study_takes_no_options_of_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path), "--published", str(tmp_path / "x")]) == 2
    assert "is no output of fine-tuning" in capsys.readouterr().err


def test_a_dry_run_counts_and_writes_nothing(
    output: Path, data: Path, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    arguments = ["finetune", str(recipe), "--model", str(data / "tiny"), "--dry-run", "--output"]
    assert main([*arguments, str(tmp_path / "new")]) == 0
    rows = rows_of_table(capsys.readouterr().out)
    # 40 rows are 5 steps of 8 an epoch, 48 are 6; 2 epochs, 4 cells
    assert [row[3:] for row in rows] == [["4", "0", "320", "-", "-"], ["4", "0", "384", "-", "-"]]
    assert sorted(tmp_path.iterdir()) == [recipe]

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert main([*arguments, str(output), "seeds=[0,1,2]", "halving=true"]) == 0
    rows = rows_of_table(capsys.readouterr().out)
    # halving: 2 settings with the first seed, 1 with each of the others; the loser's second cell is not of the plan
    assert [row[2:6] for row in rows] == [["2 x 3", "4", "3", "80"], ["2 x 3", "4", "3", "96"]]
    assert all(float(row[6]) > 0 for row in rows)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def rows_of_table(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
