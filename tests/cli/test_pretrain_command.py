"""The command `pretrain` on its own: what it says of a recipe that is made for a study."""

import contextlib
from pathlib import Path

import pytest
import study_on_disk
import tiny_study
import yaml

from kd_megatron.cli import main as cli
from kd_megatron.console import logs
from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.launch import preflight
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import prerequisites
from kd_megatron.study.prerequisites import prepare_inputs
from kd_megatron.training import run


@pytest.mark.parametrize(("budget", "times"), [({"hours": 1.0, "calibrate": {}}, 1), ({"hours": 1.0}, 0)])
def test_a_calibrated_budget_is_said_to_be_run_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, object], times: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logs, "say", said.append)
    monkeypatch.setattr(dist, "joined", contextlib.nullcontext)
    monkeypatch.setattr(preflight, "compare_nodes", lambda arguments: None)
    monkeypatch.setattr(prerequisites, "prepare_inputs", lambda recipe, root: None)
    monkeypatch.setattr(run, "pretrain", lambda *given: None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(study_on_disk.recipe_data(budget=budget)))
    assert cli.main(["pretrain", str(tmp_path / "recipe.yaml"), "--arm", "scratch"]) == 0
    assert sum("ended by the clock" in line for line in said) == times


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(study_on_disk.recipe_data()))
    assert cli.main(["pretrain", "recipe.yaml", "--arm", "scratch", "--seed", str(seed)]) == RecipeError.exit_code
    assert f"--seed {seed}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_teacher_of_another_recipe_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    inputs = tiny_study.write_inputs(tmp_path / "inputs")
    encoder = {"hidden_size": 24, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}

    def study(num_tokens: int) -> StudyRecipe:
        teacher = {"path": None, "train": {"encoder": encoder, "budget": {"tokens": num_tokens}}}
        return tiny_study.tiny_study(inputs, teacher=teacher)

    prepare_inputs(study(512), tmp_path / "runs")
    weights = (tmp_path / "runs" / "teacher" / "export" / "model.safetensors").read_bytes()
    prepare_inputs(study(512), tmp_path / "runs")  # is found finished
    with pytest.raises(OutputError, match=r"a teacher of another recipe; these keys differ: budget\.tokens\n"):
        prepare_inputs(study(1024), tmp_path / "runs")
    logs_more = study(512).model_copy(
        update={"validation": study(512).validation.model_copy(update={"num_samples": 4})}
    )
    prepare_inputs(logs_more, tmp_path / "runs")  # no weight hangs on it
    assert (tmp_path / "runs" / "teacher" / "export" / "model.safetensors").read_bytes() == weights
