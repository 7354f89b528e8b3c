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
from kd_megatron.training.probe import FirstHead, States, loss_and_hits, train_probe
from kd_megatron.training.validate import Validation


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist.initialise()
    return write_inputs(tmp_path_factory.mktemp("validate"))


def validation(inputs: Path, **changes: Any) -> Validation:
    study = tiny_study(inputs, validation={"num_samples": 16, "probe_windows": 32, "probe_steps": 5, **changes})
    return Validation(study.data, study.validation, torch.device("cpu"), bf16=False)


def student(inputs: Path, seed: int = 0) -> TappedEncoder:
    recipe = tiny_study(inputs).student
    return TappedEncoder(build_student(recipe, 300, {"pad_token_id": 0}, seed), Needs(logits=True))


def measure(made: Validation, encoder: TappedEncoder, own_head: bool = True) -> dict[str, Any]:
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


def planted(encoder: TappedEncoder, num_windows: int, seed: int) -> States:
    """States that tell the masked word to whoever learns to turn them round: its embedding times a fixed rotation."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = encoder.embeddings.detach()
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1)))[0]
    labels = torch.randint(0, 300, (num_windows, 3), generator=generator)
    return States(torch.nn.functional.normalize(embeddings[labels], dim=-1) @ rotation, labels)


def test_it_learns_what_can_be_learnt_of_the_states(inputs: Path) -> None:
    encoder = student(inputs)
    recipe = tiny_study(inputs, validation={"probe_steps": 20_000, "probe_learning_rate": 3e-3}).validation
    states = [planted(encoder, 400, 2), planted(encoder, 64, 3)]
    start, embeddings = FirstHead.of(encoder.model), encoder.embeddings.detach()
    found = train_probe(start, embeddings, *states, recipe, bf16=False, look=lambda step: None)
    assert found.converged
    assert found.curve[0] > 5.5
    assert min(found.curve) < 1.0


def test_a_probe_that_runs_out_of_steps_has_not_converged(inputs: Path) -> None:
    encoder = TappedEncoder(load_model(str(inputs / "teacher"), torch.float32, True), Needs(logits=True))
    none, few, enough = (measure(validation(inputs, probe_steps=steps), encoder) for steps in (0, 1, 5_000))
    assert [one["probe_converged"] for one in (none, few, enough)] == [False, False, True]
    assert [one["probe_steps"] for one in (none, few)] == [0, 1]
    curve = enough["probe_curve"]
    assert len(curve) >= 3  # the beginning, and a pass of each stage
    assert enough["probe_steps"] % (len(curve) - 1) == 0


def test_the_best_head_on_the_slice_is_kept(inputs: Path) -> None:
    """At a rate that ruins any head, the probe stays where it began."""
    encoder = TappedEncoder(load_model(str(inputs / "teacher"), torch.float32, True), Needs(logits=True))
    ruined = measure(validation(inputs, probe_learning_rate=1e4, probe_steps=5_000), encoder)
    begins = measure(validation(inputs, probe_steps=0), encoder)
    assert min(ruined["probe_curve"]) == ruined["probe_curve"][0] < max(ruined["probe_curve"])
    assert ruined["probe_mlm_loss"] == begins["probe_mlm_loss"]


def test_it_begins_at_the_head_that_it_is_given_with_the_students_own_embeddings(inputs: Path) -> None:
    """With the student's own head and no step, its loss is that head's; a bias of zeros becomes frequencies."""
    encoder, made = student(inputs), validation(inputs, probe_steps=0)
    with torch.no_grad():
        encoder.decoder.bias.normal_()
    found = measure(made, encoder)
    assert found["probe_mlm_loss"] == pytest.approx(found["mlm_loss"], rel=FLOAT32_LOSS_RELATIVE)
    start = FirstHead.of(encoder.model)
    assert start.with_frequencies(torch.arange(300)) is start
    zeros = FirstHead(start.top, torch.zeros(300)).with_frequencies(torch.tensor([0.0, 3.0, 1.0] + [0.0] * 297))
    assert zeros.bias.exp().sum().item() == pytest.approx(1.0, rel=FLOAT32_LOSS_RELATIVE)
    assert (zeros.bias[1] - zeros.bias[2]).exp().item() == pytest.approx(3.5 / 1.5, rel=FLOAT32_LOSS_RELATIVE)


def test_layers_that_nothing_trains_are_probed_below_as_well(inputs: Path) -> None:
    model = student(inputs).model
    last = model.config.num_hidden_layers
    of_relations = TappedEncoder(model, Needs(queries=(last,), keys=(last,)))
    found = measure(validation(inputs), of_relations, own_head=False)
    assert found["probe_tap_layer"] == last - 1
    assert found["probe_tap_mlm_loss"] != found["probe_mlm_loss"]
    assert "probe_tap_mlm_loss" not in measure(validation(inputs), student(inputs))


def test_the_probe_reads_the_same_text_whatever_the_pool_of_the_student(inputs: Path) -> None:
    whole, encoder = validation(inputs), student(inputs)
    study = tiny_study(
        inputs, data={"unique_tokens": 64}, validation={"num_samples": 16, "probe_windows": 32, "probe_steps": 5}
    )
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
