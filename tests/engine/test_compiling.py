"""What ``training.compile: auto`` becomes: one decision for all arms, kept by what has begun."""

from pathlib import Path

import pytest
import torch
from tiny_study import ARMS, tiny_study, write_inputs

from kd_megatron.engine import compiling
from kd_megatron.engine.compiling import resolve_compile, trial_problem
from kd_megatron.machine import toolchain
from kd_megatron.recipe import StudyRecipe, recipe_yaml


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[StudyRecipe]:
    """As if a GPU were here, and a trial went well; the recipes that were tried."""
    tried: list[StudyRecipe] = []

    def trial(recipe: StudyRecipe) -> None:
        tried.append(recipe)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(toolchain, "problem", lambda: None)
    monkeypatch.setattr(compiling, "trial_problem", trial)
    return tried


def decided(study: StudyRecipe, begun: Path | None = None) -> object:
    return resolve_compile(study, begun).training.compile


def test_on_a_cpu_nothing_is_compiled_by_itself(tmp_path: Path) -> None:
    assert tiny_study(tmp_path).training.compile == "auto"
    assert not tiny_study(tmp_path).training.is_compiled
    assert decided(tiny_study(tmp_path)) is False
    assert decided(tiny_study(tmp_path, training={"compile": True})) is True


def test_on_a_gpu_it_is_tried_once_and_then_true(tmp_path: Path, on_a_gpu: list[StudyRecipe]) -> None:
    assert decided(tiny_study(tmp_path)) is True
    assert len(on_a_gpu) == 1
    assert decided(tiny_study(tmp_path, training={"compile": False})) is False
    assert len(on_a_gpu) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"ds_config": "zero3"}},
        {"teacher": {"partition": True}},
        {  # one arm in pieces: none is compiled
            "arms": {**ARMS, "minilm": {**ARMS["minilm"], "training.ds_config": "zero3"}},
            "allow_difference": ["training.ds_config"],
        },
    ],
    ids=["stage 3", "a teacher in pieces", "one arm at stage 3"],
)
def test_weights_in_pieces_are_left_alone(
    tmp_path: Path, on_a_gpu: list[StudyRecipe], changes: dict[str, object]
) -> None:
    assert decided(tiny_study(tmp_path, **changes)) is False
    assert on_a_gpu == []


@pytest.mark.parametrize("fault", ["no C compiler (CC, gcc or clang)", "a layer cannot be compiled: no ptxas"])
def test_a_fault_is_said_and_turns_it_off_for_all(
    tmp_path: Path, on_a_gpu: list[StudyRecipe], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(compiling, "say", said.append)
    if "C compiler" in fault:
        monkeypatch.setattr(toolchain, "problem", lambda: fault)
    else:
        monkeypatch.setattr(compiling, "trial_problem", lambda recipe: fault)
    assert decided(tiny_study(tmp_path)) is False
    assert said == [f"training.compile: auto is false for all arms, which are slower for it: {fault}"]
    assert on_a_gpu == []


@pytest.mark.parametrize("was", [True, False])
def test_what_has_begun_keeps_what_was_decided(tmp_path: Path, on_a_gpu: list[StudyRecipe], was: bool) -> None:
    study, path = tiny_study(tmp_path), tmp_path / "study.yaml"
    path.write_text(recipe_yaml.dump(tiny_study(tmp_path, training={"compile": was}).model_dump(mode="json")))
    assert decided(study, path) is was
    assert on_a_gpu == []
    path.write_text("kind: study\n")  # nothing is decided in there
    assert decided(study, path) is True


def test_a_trial_compiles_a_layer_of_both_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(write_inputs(tmp_path))
    assert trial_problem(study) is None
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert "a layer cannot be compiled: " in str(trial_problem(study))
    monkeypatch.setenv("KD_COMPILE_SECONDS", "1")
    assert "within 1 s (KD_COMPILE_SECONDS)" in str(trial_problem(study))
