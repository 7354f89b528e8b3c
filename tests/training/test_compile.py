"""Student and teacher by torch.compile: the same curve as without, for each objective; refused where it cannot be."""

from pathlib import Path

import pytest
import torch
import torch._dynamo
from curves import curve, largest_difference, learn
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import COMPILED_200_STEPS_RELATIVE

from kd_megatron.engine import state as engine_state
from kd_megatron.engine.build import refuse_compile_in_pieces
from kd_megatron.engine.state import MOMENTS
from kd_megatron.errors import RecipeError
from kd_megatron.models import compiling
from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.setup import Run, prepare_run

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


@pytest.mark.parametrize("ds_config", ["zero0", "zero1", "zero2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_warm_up_leaves_nothing_behind(inputs: Path, tmp_path: Path, ds_config: str, precision: str) -> None:
    """Weights, moments, ledger and curve are those of a run without: an arm pays for no compiler."""

    def train(warm: bool) -> tuple[Run, list[dict[str, float]]]:
        study = tiny_study(inputs, training={"ds_config": ds_config, "precision": precision, "micro_batch_size": 4})
        run = prepare_run(study, "minilm", 0, tmp_path / str(warm), str(inputs / "teacher"))
        if warm:
            charged = run.ledger.to_dict()
            weights = run.engine.full_weights()
            assert run.step.warm_up(run.micro_batches(0)) > 0.0
            assert run.ledger.to_dict() == charged
            after = run.engine.full_weights()
            assert all(torch.equal(weights[name], after[name]) for name in weights)
            state = engine_state.gather(run.engine)
            assert state.num_updates == 0
            assert not any(moment.any() for kind in MOMENTS for moment in state.tensors[kind].values())
        return run, learn(run, 5, rate=1e-3)

    (warm, curve_of_warm), (cold, curve_of_cold) = train(True), train(False)
    assert curve_of_warm == curve_of_cold
    ours, theirs = warm.engine.full_weights(), cold.engine.full_weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    warm.close()
    cold.close()


def test_code_with_too_many_forms_is_an_error_and_not_left_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, torch would run the forms past its limit uncompiled: the last arms of a process alone."""
    monkeypatch.setattr(compiling, "MOST_FORMS", 2)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", False)
    with torch.compiler.set_stance("default", force_backend="eager"):
        double = compiling.compiled(lambda tensor: 2 * tensor)
        double(torch.ones(1))
        double(torch.ones(2))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            double(torch.ones(3))
    torch.compiler.reset()
