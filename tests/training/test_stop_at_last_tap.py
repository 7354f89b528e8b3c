"""Models that stop at their last tap: the student trains, and the teacher teaches, as one that runs whole."""

from pathlib import Path

import pytest
import torch
from curves import curve
from safetensors.torch import load_file
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import PARITY_FLOAT32_RELATIVE

from benchmarks.steps.variants import TimedVariant, Variant
from kd_megatron.training.run import pretrain

NUM_STEPS = 200


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("objective", ARMS)
def test_200_steps_give_the_same_curve_bit_for_bit(inputs: Path, objective: str, tmp_path: Path) -> None:
    def train(stops: bool) -> list[dict[str, float]]:
        study = tiny_study(inputs, arms={objective: ARMS[objective]}, training={"stop_at_last_tap": stops})
        return curve(study, objective, tmp_path / str(stops), inputs / "teacher", NUM_STEPS, rate=1e-3)

    assert train(True) == train(False)


@pytest.mark.parametrize("objective", [arm for arm in ARMS if arm != "scratch"])
def test_200_steps_beside_a_whole_teacher_give_the_same_losses_bit_for_bit(
    inputs: Path, objective: str, tmp_path: Path
) -> None:
    def losses(whole: bool) -> list[dict[str, float]]:
        study = tiny_study(inputs, arms={objective: ARMS[objective]})
        variant = Variant(objective, "auto", study, objective, whole_teacher=whole, num_warmup_steps=0)
        run = TimedVariant(variant, tmp_path / str(whole), str(inputs / "teacher"))
        found = [run.losses_of_a_step() for _ in range(NUM_STEPS)]
        run.close()
        return found

    assert losses(True) == losses(False)


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_what_no_loss_reaches_keeps_its_first_values_at_every_stage(inputs: Path, stage: str, tmp_path: Path) -> None:
    """Parameters without a gradient are where some ZeRO configurations apply an old one again."""
    ends = []
    for stops in (True, False):
        training = {"stop_at_last_tap": stops, "ds_config": stage}
        study = tiny_study(inputs, arms={"minilm": ARMS["minilm"]}, training=training, budget={"tokens": 4 * 8 * 16})
        directory = tmp_path / str(stops)
        summary = pretrain(study, "minilm", 0, directory, str(inputs / "teacher"))
        weights = load_file(directory / "export" / "model.safetensors")
        untrained = set(summary["untrained_parameters"])
        ends.append((weights, untrained, summary["validation"]["probe_mlm_loss"]))
    (stopped, untrained, loss), (whole, untrained_whole, loss_whole) = ends
    assert untrained == untrained_whole
    assert any("layer.1.output" in name for name in untrained)
    assert not any("layer.0" in name or "layer.1.attention.self" in name for name in untrained)
    for name, weight in whole.items():
        assert torch.equal(stopped[name], weight), name
    assert loss == pytest.approx(loss_whole, rel=PARITY_FLOAT32_RELATIVE)
