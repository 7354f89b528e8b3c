"""The probe is the same for every student, disturbs nothing, and tells a better student from a worse one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import tiny_study, write_inputs
from tolerances import FLOAT32_LOSS_RELATIVE

from kd_megatron.errors import DataError
from kd_megatron.models.build import build_student, load_model
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.ranks import dist
from kd_megatron.tensors import IGNORED, Needs
from kd_megatron.training.validate import Validation, loss_and_hits


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist.initialise()
    return write_inputs(tmp_path_factory.mktemp("validate"))


def validation(inputs: Path, **changes: Any) -> Validation:
    study = tiny_study(inputs, validation={"num_samples": 16, "probe_steps": 5, **changes})
    return Validation(study.data, study.validation, torch.device("cpu"), bf16=False)


def student(inputs: Path, seed: int = 0) -> TappedEncoder:
    recipe = tiny_study(inputs).student
    return TappedEncoder(build_student(recipe, 300, {"pad_token_id": 0}, seed), Needs(logits=True))


def measure(made: Validation, encoder: TappedEncoder, own_head: bool = True) -> dict[str, float]:
    return made.measure(encoder, encoder.embeddings.detach().clone(), own_head)


def test_it_gives_the_same_again_and_leaves_student_and_random_state_alone(inputs: Path) -> None:
    encoder = student(inputs).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(5)
    first = measure(validation(inputs), encoder)
    drawn = torch.rand(1)
    assert measure(validation(inputs), encoder) == first
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_own_head_is_measured_as_the_library_would(inputs: Path) -> None:
    encoder = student(inputs)
    made = validation(inputs)
    batch = made.held_out.batch(0, 16)
    labels = torch.full_like(batch.input_ids, IGNORED).scatter(1, batch.masked_positions, batch.labels)
    expected = encoder.model(batch.input_ids, labels=labels).loss.item()
    assert measure(made, encoder)["mlm_loss"] == pytest.approx(expected, rel=FLOAT32_LOSS_RELATIVE)
    assert "mlm_loss" not in measure(made, encoder, own_head=False)


def test_more_probe_steps_fit_better_on_what_can_be_learnt(inputs: Path) -> None:
    """The words are uniform random, so the best a probe can do is their entropy; an untrained one is above it."""
    encoder = TappedEncoder(load_model(str(inputs / "teacher"), torch.float32, True), Needs(logits=True))
    losses = [measure(validation(inputs, probe_steps=steps), encoder)["probe_mlm_loss"] for steps in (1, 60)]
    assert losses[1] < losses[0]


def test_the_probe_reads_the_same_text_whatever_the_pool_of_the_student(inputs: Path) -> None:
    whole, encoder = validation(inputs), student(inputs)
    study = tiny_study(inputs, data={"unique_tokens": 64}, validation={"num_samples": 16, "probe_steps": 5})
    capped = Validation(study.data, study.validation, torch.device("cpu"), bf16=False)
    assert whole.probe_data.num_windows > 4
    assert torch.equal(capped.probe_data.batch(0, 8).input_ids, whole.probe_data.batch(0, 8).input_ids)
    assert measure(capped, encoder) == measure(whole, encoder)


def test_windows_that_choose_are_not_those_that_are_reported(inputs: Path) -> None:
    reported, chooses = validation(inputs), validation(inputs, skip_samples=16)
    encoder = student(inputs)
    first, second = (made.held_out.batch(start, 16).input_ids for made, start in ((reported, 0), (chooses, 16)))
    assert not {tuple(row.tolist()) for row in first} & {tuple(row.tolist()) for row in second}
    assert measure(chooses, encoder)["mlm_loss"] != measure(reported, encoder)["mlm_loss"]
    alone = validation(inputs, num_samples=32)
    both = (measure(one, encoder)["mlm_loss"] for one in (reported, chooses))
    assert sum(both) / 2 == pytest.approx(measure(alone, encoder)["mlm_loss"], rel=0.05)  # by unequal numbers of masks


def test_too_few_held_out_windows_for_both_are_refused(inputs: Path) -> None:
    with pytest.raises(DataError, match="held-out windows, of which 1000000 are left out"):
        validation(inputs, skip_samples=10**6)


def test_loss_and_hits_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    loss, hits = loss_and_hits(logits, torch.tensor([[0, 0, IGNORED]]))
    assert loss.item() == pytest.approx(torch.log1p(torch.tensor(-2.0).exp()) + torch.log1p(torch.tensor(1.0).exp()))
    assert hits.item() == 1
