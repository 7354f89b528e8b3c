"""Student and teacher by torch.compile: the same curve as without, for each objective; refused where it cannot be."""

from pathlib import Path

import pytest
from curves import curve, largest_difference
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import COMPILED_200_STEPS_RELATIVE

from kd_megatron.engine.build import refuse_compile_in_pieces
from kd_megatron.errors import RecipeError
from kd_megatron.recipe import TrainingRecipe

NUM_STEPS = 200
LONG = ("scratch", "vanilla_kd", "tinybert")  # a minute each, most of it in the compiler


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("arm", [pytest.param(arm, marks=pytest.mark.long if arm in LONG else ()) for arm in ARMS])
def test_200_steps_give_the_same_curve(inputs: Path, arm: str, tmp_path: Path) -> None:
    def train(compiled: bool) -> list[dict[str, float]]:
        study = tiny_study(inputs, arms={arm: ARMS[arm]}, training={"compile": compiled})
        return curve(study, arm, tmp_path / str(compiled), inputs / "teacher", NUM_STEPS, rate=1e-3)

    difference = largest_difference(train(False), train(True))
    assert 0.0 < difference <= COMPILED_200_STEPS_RELATIVE, "0: nothing was compiled"


def test_weights_in_pieces_are_not_compiled() -> None:
    with pytest.raises(RecipeError, match="stage 3"):
        refuse_compile_in_pieces(TrainingRecipe(compile=True, ds_config="zero3"))
    refuse_compile_in_pieces(TrainingRecipe(compile=True, ds_config="zero2"))
