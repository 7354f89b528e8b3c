"""The command `pretrain` on its own: what it says of a recipe that is made for a study."""

import contextlib
from pathlib import Path

import pytest
import study_on_disk
import yaml

from kd_megatron import dist, logs
from kd_megatron.cli import main as cli
from kd_megatron.launch import preflight
from kd_megatron.study import runner
from kd_megatron.training import run


@pytest.mark.parametrize(("budget", "times"), [({"hours": 1.0, "calibrate": {}}, 1), ({"hours": 1.0}, 0)])
def test_a_calibrated_budget_is_said_to_be_run_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, object], times: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logs, "say", said.append)
    monkeypatch.setattr(dist, "joined", contextlib.nullcontext)
    monkeypatch.setattr(preflight, "compare_nodes", lambda arguments: None)
    monkeypatch.setattr(runner, "prepare_inputs", lambda recipe, root: None)
    monkeypatch.setattr(run, "pretrain", lambda *given: None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(study_on_disk.recipe_data(budget=budget)))
    assert cli.main(["pretrain", str(tmp_path / "recipe.yaml"), "--arm", "scratch"]) == 0
    assert sum("ended by the clock" in line for line in said) == times
