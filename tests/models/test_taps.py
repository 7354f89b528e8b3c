"""Taps are the model's own projections and states; taking them changes nothing and stores nothing of size L x L."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recording
from small_shards import write_tokenizer
from tiny_study import ARMS, write_teacher
from tolerances import REORDERED_FLOAT64_RELATIVE
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from kd_megatron.errors import ModelError
from kd_megatron.models.build import build_student, load_teacher, shape_of
from kd_megatron.models.taps import TappedEncoder, token_types
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.tensors import Batch, Needs

LENGTH, NUM_MASKED, VOCAB = 12, 3, 50
EVERYTHING = Needs(
    queries=(1, 2, 3), keys=(1, 2, 3), values=(1, 2, 3), hidden=(0, 1, 2, 3), logits=True, all_logits=True
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}


def make_batch(padding: int = 0, length: int = LENGTH, rows: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    mask = None
    if padding:
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[0, -padding:] = False
        ids = torch.where(mask, ids, 1)
    positions = torch.tensor([[1, 4, 6]] * rows)
    return Batch(ids, ids.roll(1, 1), mask, positions, ids.gather(1, positions), torch.arange(rows))


def make_model(kind: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    if kind == "bert":
        config: Any = BertConfig(vocab_size=VOCAB, max_position_embeddings=32, initializer_range=0.3, **SIZES)
        return BertForMaskedLM._from_config(config, attn_implementation=attention).eval()
    config = RobertaConfig(vocab_size=VOCAB, max_position_embeddings=34, initializer_range=0.3, pad_token_id=1, **SIZES)
    return RobertaForMaskedLM._from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("padding", [0, 5])
def test_taps_equal_the_projections_and_states_of_the_plain_model(kind: str, padding: int) -> None:
    batch = make_batch(padding)
    taps = TappedEncoder(make_model(kind), EVERYTHING)(batch)
    plain = make_model(kind, "eager")
    output = plain(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    valid = batch.valid()
    for layer, state in enumerate(output.hidden_states):
        torch.testing.assert_close(taps.hidden[layer][valid], state[valid], rtol=1e-5, atol=1e-5)
    for number, layer in enumerate(plain.base_model.encoder.layer, start=1):
        attention = layer.attention.self
        below = taps.hidden[number - 1]
        for name, projection in (("queries", attention.query), ("keys", attention.key), ("values", attention.value)):
            tapped = getattr(taps, name)[number]
            assert tapped.shape == (2, LENGTH, 4, 4)
            torch.testing.assert_close(tapped.flatten(2), projection(below), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(taps.all_logits.dense()[valid], output.logits[valid], rtol=1e-4, atol=1e-4)
    expected = torch.stack([output.logits[row, batch.masked_positions[row]] for row in range(2)])
    torch.testing.assert_close(taps.logits.dense(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_outputs_with_taps_on_are_those_of_the_library_bit_for_bit(kind: str) -> None:
    batch = make_batch(padding=4)
    tapped = TappedEncoder(make_model(kind), EVERYTHING)(batch)
    plain = make_model(kind, "sdpa")(batch.input_ids, attention_mask=batch.attention_mask)
    assert torch.equal(tapped.all_logits.dense(), plain.logits)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_one_token_type_for_all_is_what_a_lookup_of_each_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's form: the same output bit for bit, and in float64 the same gradients."""

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = make_model(kind).double()
        output = TappedEncoder(model, EVERYTHING)(make_batch(padding=4)).all_logits.dense()
        output.square().sum().backward()
        embeddings = model.base_model.embeddings.named_parameters()
        return output.detach(), {name: parameter.grad for name, parameter in embeddings}

    output, gradients = run()
    monkeypatch.setattr("kd_megatron.models.taps.token_types", lambda ids: ids.new_zeros(1, 1))
    found, found_gradients = run()
    assert torch.equal(found, output)
    assert found_gradients["token_type_embeddings.weight"].count_nonzero()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=REORDERED_FLOAT64_RELATIVE, atol=1e-10)


def test_a_cpu_takes_the_token_types_of_the_model() -> None:
    assert token_types(make_batch().input_ids) is None


def test_padding_is_not_attended_to() -> None:
    batch = make_batch(padding=5)
    changed = Batch(**{**batch.__dict__, "input_ids": torch.where(batch.valid(), batch.input_ids, 7)})
    encoder = TappedEncoder(make_model("bert"), Needs(hidden=(3,)))
    valid = batch.valid()
    assert torch.equal(encoder(batch).hidden[3][valid], encoder(changed).hidden[3][valid])


def test_only_what_is_needed_is_returned_and_clean_inputs_are_read() -> None:
    batch = make_batch()
    encoder = TappedEncoder(make_model("bert"), Needs(keys=(2,)))
    taps = encoder(batch)
    assert (set(taps.keys), taps.queries, taps.hidden, taps.logits, taps.all_logits) == ({2}, {}, {}, None, None)
    swapped = Batch(**{**batch.__dict__, "input_ids": batch.clean_ids})
    assert torch.equal(encoder(batch, "clean").keys[2], encoder(swapped).keys[2])


def holds_square(shapes: set[tuple[int, ...]], length: int) -> bool:
    return any(shape[-2:] == (length, length) for shape in shapes if len(shape) >= 3)


@pytest.mark.parametrize("objective", ARMS)
def test_no_forward_stores_a_tensor_of_length_squared(objective: str, tmp_path: Path) -> None:
    """Lengths that no other dimension equals, so that only a relation can have the shape [.., L, L]."""
    length = 29
    write_tokenizer(tmp_path / "tokenizer")
    path = str(write_teacher(tmp_path / "teacher", tmp_path / "tokenizer"))
    recipe = EncoderRecipe(hidden_size=24, num_layers=2, num_attention_heads=4, intermediate_size=48, max_positions=64)
    student = build_student(recipe, 300, {"pad_token_id": 0}, seed=0)
    options = of_arm.parse_options(ARMS[objective], where="test")
    teacher_config = make_teacher_shape(path)
    made = of_arm.build(options, shape_of(student.config), teacher_config)
    batch = make_batch(length=length)
    with Recording() as recorder:
        TappedEncoder(student, made.needs_student).train()(batch)
        if made.needs_teacher is not None:
            load_teacher(path, torch.float32, made.needs_teacher, torch.device("cpu"))(batch)
    assert not holds_square(recorder.shapes, length)


def make_teacher_shape(path: str) -> Any:
    from kd_megatron.models.build import model_config

    return shape_of(model_config(path))


def test_the_recorder_would_see_an_eager_relation() -> None:
    model = make_model("bert", "eager")
    with Recording() as recorder:
        model(make_batch(length=29).input_ids)
    assert holds_square(recorder.shapes, 29)


def test_an_unknown_architecture_is_refused() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    with pytest.raises(ModelError, match="albert"):
        TappedEncoder(AlbertForMaskedLM(AlbertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2,
                                                     intermediate_size=8, embedding_size=8)), Needs())  # fmt: skip
