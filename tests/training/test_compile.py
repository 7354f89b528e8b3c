"""Student and teacher by torch.compile: the same curve as without, for each objective; refused where it cannot be."""

from pathlib import Path

import pytest
import torch
from curves import curve, largest_difference
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import COMPILED_200_STEPS_RELATIVE

from kd_megatron.data.prefetch import Prefetcher
from kd_megatron.engine.build import refuse_compile_in_pieces
from kd_megatron.errors import EnvironmentFault, RecipeError
from kd_megatron.ranks import dist
from kd_megatron.ranks.signals import StopRequest
from kd_megatron.recipe import TrainingRecipe
from kd_megatron.training.loop import charge, one_step
from kd_megatron.training.setup import prepare_run

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


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ds_config", ["zero0", "zero2"])
def test_all_is_compiled_before_the_first_step_and_nobody_pays_for_it(
    inputs: Path, tmp_path: Path, ds_config: str, cached: bool
) -> None:
    """By the backend that needs no C++ compiler: what is counted are graphs."""
    study = tiny_study(
        inputs,
        arms={"minilm": ARMS["minilm"]},
        training={"compile": True, "ds_config": ds_config, "micro_batch_size": 4},
        data={"mask_seed": 1},
        teacher={"cache": {"path": str(tmp_path / "cache")}} if cached else {},
    )
    torch.compiler.reset()
    counted = torch._dynamo.utils.counters["stats"]
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        run = prepare_run(study, "minilm", 0, tmp_path / "run", str(inputs / "teacher"))
        graphs = counted["unique_graphs"]
        assert graphs >= 2  # layers of student and teacher
        assert run.ledger.seconds() == 0.0
        assert not any(parameter.grad is not None for parameter in run.module.parameters())
        before = run.engine.full_weights()
        for _ in range(2):
            batches = Prefetcher(run.micro_batches, first=run.ledger.steps)
            one_step(run, batches, 1e-3, StopRequest())
            charge(run)
            batches.close()
        assert counted["unique_graphs"] == graphs
        assert any(not torch.equal(before[name], weight) for name, weight in run.engine.full_weights().items())
        run.close()
    assert run.ledger.seconds("student") > 0.0
    dist.shut_down()
    torch.compiler.reset()


def test_what_cannot_be_compiled_ends_the_run_with_a_way_out(inputs: Path, tmp_path: Path) -> None:
    def broken(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> None:
        raise RuntimeError("no such instruction")

    study = tiny_study(inputs, arms={"scratch": ARMS["scratch"]}, training={"compile": True})
    torch.compiler.reset()
    with (
        torch.compiler.set_stance("default", force_backend=broken),
        pytest.raises(EnvironmentFault, match=r"no such instruction[\s\S]*compile to false: for all arms"),
    ):
        prepare_run(study, "scratch", 0, tmp_path / "run", None)
    dist.shut_down()
    torch.compiler.reset()


def test_weights_in_pieces_are_not_compiled() -> None:
    with pytest.raises(RecipeError, match="stage 3"):
        refuse_compile_in_pieces(TrainingRecipe(compile=True, ds_config="zero3"))
    refuse_compile_in_pieces(TrainingRecipe(compile=True, ds_config="zero2"))
