"""`bench kernels` and `bench show` from the command line; a red kernel ends with a message and no file."""

import json
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.rows import Row, as_json
from kd_megatron import errors
from kd_megatron.cli import main as cli
from kd_megatron.kernels import vocab_kl

FACTS = {
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "versions": {"python": "3.11.0", "torch": "2.13.0", "liger-kernel": "absent"},
    "hardware": {"device": "a machine", "num_threads_per_process": 2, "memory_gib": 4.0},
}


def row(backend: str, ratio: float, peak_mib: float | None) -> Row:
    return Row("score_mse", backend, "B1 L2", "fp32", "cpu", 1.0, 2.0, 3.0, peak_mib, 1000.0, ratio, "eager")


def recorded(path: Path) -> dict:
    rows = [row("eager", 1.0, 8.0), row("tiled", 2.5, 2.0), row("unknown", 2.0, None)]
    record = as_json(rows, FACTS)
    path.write_text(json.dumps(record))
    return record


def test_kernels_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    json_file, page, figure = (tmp_path / name for name in ("rows.json", "page.md", "figure.png"))
    arguments = ["bench", "kernels", "--shapes", "tiny", "--kernel", "vocab_cross_entropy", "--seconds", "0"]
    arguments += ["--json", str(json_file), "--markdown", str(page), "--plot", str(figure)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert "vocab_cross_entropy N40 V301 D16 fp32" in shown.out
    assert "torch.compile" in shown.out
    assert "liger is left out" in shown.err
    record = json.loads(json_file.read_text())
    assert {"date", "commit", "versions", "hardware", "rows"} <= record.keys()
    assert {row["backend"] for row in record["rows"]} >= {"eager", "chunked"}
    assert pages.render(*pages.read(json_file)) in page.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("recorded_ratio", "exit_code"), [(1e-6, 0), (1e6, errors.SlowerError.exit_code)])
def test_kernels_are_compared_with_recorded_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded_ratio: float, exit_code: int
):
    json_file = tmp_path / "rows.json"
    arguments = ["bench", "kernels", "--shapes", "tiny", "--kernel", "vocab_cross_entropy", "--seconds", "0"]
    assert cli.main([*arguments, "--json", str(json_file)]) == 0
    record = json.loads(json_file.read_text())
    for entry in record["rows"]:
        if entry["backend"] == "chunked":
            entry["ratio"] = recorded_ratio
    json_file.write_text(json.dumps(record))
    # A file may be compared with and replaced in one call; the tolerance is for the backends that nobody changed.
    compared = [*arguments, "--compare", str(json_file), "--tolerance", "0.999", "--json", str(json_file)]
    assert cli.main(compared) == exit_code
    shown = capsys.readouterr()
    assert "slower by" in shown.out
    assert ("vocab_cross_entropy chunked" in shown.err) == (exit_code != 0)
    assert {entry["ratio"] for entry in json.loads(json_file.read_text())["rows"]}.isdisjoint({recorded_ratio})


def test_a_wrong_kernel_ends_with_a_message_and_no_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    reference = vocab_kl.CROSS_ENTROPY_BACKENDS["reference"]
    wrong = {"reference": reference, "wrong": lambda *arguments: 1.01 * reference(*arguments)}
    monkeypatch.setattr(vocab_kl, "CROSS_ENTROPY_BACKENDS", wrong)
    json_file = tmp_path / "rows.json"
    arguments = ["bench", "kernels", "--shapes", "tiny", "--kernel", "vocab_cross_entropy", "--json", str(json_file)]
    assert cli.main(arguments) == errors.KdError.exit_code
    shown = capsys.readouterr()
    assert "vocab_cross_entropy, backend 'wrong'" in shown.err
    assert "nothing is timed otherwise" in shown.err
    assert "p50" not in shown.out
    assert not json_file.exists()


def test_show_prints_recorded_rows_and_fills_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    json_file, page = tmp_path / "rows.json", tmp_path / "page.md"
    recorded(json_file)
    page.write_text(f"before\n\n{pages.start_of(str(json_file))}\nold rows\n{pages.END}\n\nafter\n")
    figure = tmp_path / "figure.png"
    for _ in range(2):  # a second time changes nothing
        assert cli.main(["bench", "show", str(json_file), "--markdown", str(page), "--plot", str(figure)]) == 0
        text = page.read_text()
        assert text.startswith("before\n\n<!-- rows of ")
        assert text.endswith(f"{pages.END}\n\nafter\n")
        assert "| score_mse | B1 L2 | fp32 | tiled | 2.00 | 1.00 to 3.00 | 2.50x | 2.00 | 0.250 | 1,000 |" in text
        assert "old rows" not in text
    assert "a machine, 2 threads; python 3.11.0, torch 2.13.0." in " ".join(capsys.readouterr().out.split())
    assert figure.exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["step"], errors.RecipeError.exit_code, "a study recipe, such as benchmarks/recipes/"),
        (["show"], errors.RecipeError.exit_code, "a file that --json wrote"),
        (["kernels", "recipes/debug.yaml"], errors.RecipeError.exit_code, "bench kernels takes no file"),
        (["kernels", "--steps", "3"], errors.RecipeError.exit_code, "bench kernels takes no steps: 3"),
        (["step", "a.yaml", "--shapes", "tiny"], errors.RecipeError.exit_code, "bench step takes no shapes"),
        (["step", "recipes/debug.yaml", "--steps", "0"], errors.RecipeError.exit_code, "--steps 0"),
        (["step", "recipes/debug.yaml", "--arms", "minlim"], errors.RecipeError.exit_code, "did you mean 'minilm'?"),
        (["step", "recipes/debug.yaml", "--batches", "8,x"], errors.RecipeError.exit_code, "whole numbers"),
        (["step", "recipes/debug.yaml", "--batches", "8,5"], errors.RecipeError.exit_code, "divisors of 32"),
        (["step", "recipes/debug.yaml", "--peer-python", "no/python"], errors.RecipeError.exit_code, "no/python"),
        (["step", "recipes/debug.yaml", "--peers", "--ladder"], errors.RecipeError.exit_code, "one of them"),
        (["step", "recipes/debug.yaml", "--compare", "no.json"], errors.DataError.exit_code, "no.json"),
        (["kernels", "--tolerance", "0.2", "--compare", "no.json"], errors.DataError.exit_code, "no.json"),
        (["show", "rows.json", "--compare", "rows.json"], errors.RecipeError.exit_code, "bench show takes no compare"),
        (["kernels", "--shapes", "papr"], errors.RecipeError.exit_code, "did you mean 'paper'?"),
        (["kernels", "--kernel", "score_mes"], errors.RecipeError.exit_code, "did you mean 'score_mse'?"),
        (["kernel"], errors.RecipeError.exit_code, "invalid choice: 'kernel'"),
        (["kernels", "--plot", "figure.jpeg"], errors.RecipeError.exit_code, "one of .png, .pdf, .svg"),
        (["show", "no/such.json"], errors.DataError.exit_code, "no/such.json"),
    ],
)
def test_bad_arguments(arguments: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["bench", *arguments]) == exit_code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["not json", "[]", '{"rows": [{"name": "x"}]}', '{"rows": []}'])
def test_a_file_that_holds_no_rows_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.json").write_text(content)
    assert cli.main(["bench", "show", str(tmp_path / "rows.json")]) == errors.DataError.exit_code
    assert "bench kernels --json wrote" in capsys.readouterr().err


def test_a_page_without_a_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recorded(tmp_path / "rows.json")
    page = tmp_path / "page.md"
    page.write_text("no place here\n")
    arguments = ["bench", "show", str(tmp_path / "rows.json"), "--markdown", str(page)]
    assert cli.main(arguments) == errors.OutputError.exit_code
    assert "has no place for the rows of" in capsys.readouterr().err
    assert page.read_text() == "no place here\n"


def test_help_names_all_three(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    for words in ("step RECIPE", "kernels ", "show FILE", "bench kernels --json"):
        assert words in shown
