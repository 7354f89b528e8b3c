"""``training.compile: auto``: one decision for all arms, made before anything is timed or trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.errors import KdError
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study import compiling, runner
from kd_megatron.study.effective import COMPILE_FILE, effective_recipe, recipe_of_run

OPEN = {"compile": "auto"}
TAUGHT = {arm: ARMS[arm] for arm in ("scratch", "minilm")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models are compiled on this processor (by a backend without a C++ compiler); the arms whose turn came."""
    tried: list[str] = []
    build = compiling.prepare_run

    def prepare(study: StudyRecipe, arm: str, *others: Any) -> Any:
        assert study.training.compile is True
        tried.append(arm)
        with torch.compiler.set_stance("default", force_backend="aot_eager"):
            return build(study, arm, *others)

    monkeypatch.setattr(compiling, "may_compile", lambda recipe: True)
    monkeypatch.setattr(compiling, "prepare_run", prepare)
    return tried


def study(inputs: Path, **training: Any) -> StudyRecipe:
    return tiny_study(inputs, training=OPEN | training).model_copy(update={"arms": TAUGHT})


def test_without_a_gpu_nothing_is_compiled_and_nothing_tried(inputs: Path, tmp_path: Path) -> None:
    assert study(inputs).training.compile == "auto"
    recipe = resolve_precision(study(inputs))
    assert recipe.training.compile is False
    assert compiling.compile_pieces(recipe, tmp_path) == []


def test_every_arm_is_compiled_once_and_the_decision_kept(inputs: Path, tmp_path: Path, as_on_a_gpu: list[str]) -> None:
    recipe = study(inputs)
    assert compiling.settled(recipe, tmp_path).training.compile is True
    assert as_on_a_gpu == ["scratch", "minilm"]
    found = json.loads((tmp_path / COMPILE_FILE).read_text(encoding="utf-8"))
    assert found["compiled"] is True
    assert found["why_not"] is None
    assert all(seconds > 0.0 for seconds in found["arms"].values())
    assert recipe_of_run(recipe, tmp_path, "minilm", 0).training.compile is True
    compiling.settled(recipe, tmp_path)
    assert as_on_a_gpu == ["scratch", "minilm"], "it is decided once"


def test_one_arm_that_cannot_be_compiled_leaves_all_uncompiled(
    inputs: Path, tmp_path: Path, as_on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    build = compiling.prepare_run

    def prepare(recipe: StudyRecipe, arm: str, *others: Any) -> Any:
        if arm == "minilm":
            raise RuntimeError("no such kernel\nand a long story")
        return build(recipe, arm, *others)

    monkeypatch.setattr(compiling, "prepare_run", prepare)
    recipe = compiling.settled(study(inputs), tmp_path)
    assert recipe.training.compile is False
    found = json.loads((tmp_path / COMPILE_FILE).read_text(encoding="utf-8"))
    assert found["why_not"].startswith("arm minilm cannot be compiled: RuntimeError: no such kernel (")
    assert all(effective_recipe(study(inputs), tmp_path).training.compile is False for _ in TAUGHT)
    said = " ".join(capsys.readouterr().err.split())
    assert "no arm is compiled: arm minilm cannot be compiled" in said


def test_an_arm_that_takes_too_long_leaves_all_uncompiled(inputs: Path, tmp_path: Path, as_on_a_gpu: list[str]) -> None:
    recipe = compiling.settled(study(inputs, compile_limit_seconds=1e-6), tmp_path)
    assert recipe.training.compile is False
    assert as_on_a_gpu == ["scratch"], "the others need not be tried"
    assert "more than training.compile_limit_seconds 1e-06" in (tmp_path / COMPILE_FILE).read_text(encoding="utf-8")


def test_an_arm_that_comes_later_follows_the_others(inputs: Path, tmp_path: Path, as_on_a_gpu: list[str]) -> None:
    compiling.settled(study(inputs, compile_limit_seconds=1e-6), tmp_path)
    more = study(inputs).model_copy(update={"arms": ARMS})
    as_on_a_gpu.clear()
    assert compiling.settled(more, tmp_path).training.compile is False
    assert as_on_a_gpu == []


def test_an_arm_that_comes_later_and_cannot_be_compiled_is_refused(
    inputs: Path, tmp_path: Path, as_on_a_gpu: list[str]
) -> None:
    compiling.settled(study(inputs), tmp_path)
    slow = study(inputs, compile_limit_seconds=1e-6).model_copy(update={"arms": ARMS})
    with pytest.raises(KdError, match="scratch, minilm were compiled; now arm scratch took"):
        compiling.settled(slow, tmp_path)
    assert json.loads((tmp_path / COMPILE_FILE).read_text(encoding="utf-8"))["compiled"] is True


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_study_decides_before_it_calibrates(inputs: Path, tmp_path: Path) -> None:
    recipe = study(inputs).model_copy(
        update={"budget": tiny_study(inputs, budget={"tokens": None, "hours": 1.0, "calibrate": {}}).budget}
    )
    assert [piece.kind for piece in runner.preparing_pieces(recipe, tmp_path)] == ["compile", "calibration"]


@pytest.mark.parametrize(
    ("has_gpu", "changes", "tried"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"training": OPEN | {"ds_config": "zero3"}}, False),
        (True, {"training": OPEN | {"ds_config": "zero2"}}, True),
        (True, {"teacher": {"partition": True}}, False),
    ],
)
def test_where_compilation_is_tried(
    inputs: Path, tmp_path: Path, has_gpu: bool, changes: dict[str, Any], tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    recipe = tiny_study(inputs, **{"training": OPEN, **changes})
    assert bool(compiling.compile_pieces(recipe, tmp_path)) == tried
    assert effective_recipe(recipe, tmp_path).training.compile is False, "nothing was decided yet"
