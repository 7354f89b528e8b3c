"""Students by size, teachers from disk, and clear errors for models that do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_shards import SPECIALS, VOCAB_SIZE, write_tokenizer
from tiny_study import write_teacher
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from kd_megatron.errors import ModelError
from kd_megatron.files.manifest import model_hash
from kd_megatron.models.build import build_student, check_same_vocabulary, load_model, load_teacher
from kd_megatron.models.export import export
from kd_megatron.models.initialise import initialise, uniform_layers
from kd_megatron.recipe import EncoderRecipe, InitialiseRecipe
from kd_megatron.tensors import Needs

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_positions": 64}


def student(seed: int = 0, architecture: str = "bert", **changes: object):
    recipe = EncoderRecipe(architecture=architecture, **(SIZES | changes))
    return build_student(recipe, VOCAB_SIZE, {"pad_token_id": SPECIALS["[PAD]"]}, seed)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher", tokenizer)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(99)
    one = student(3).state_dict()
    torch.rand(5)
    two, other = student(3).state_dict(), student(4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_both_architectures_take_the_longest_sequence(architecture: str) -> None:
    model = student(architecture=architecture)
    ids = torch.full((1, SIZES["max_positions"]), 9)
    assert model(ids).logits.shape == (1, SIZES["max_positions"], VOCAB_SIZE)


def test_a_teacher_is_frozen_in_eval_mode_and_cut_above_what_is_needed(teacher_path: Path) -> None:
    teacher = load_teacher(str(teacher_path), torch.bfloat16, Needs(queries=(2,), keys=(3,)), CPU)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert len(teacher.model.base_model.encoder.layer) == 3
    whole = load_teacher(str(teacher_path), torch.float32, Needs(logits=True), CPU)
    assert len(whole.model.base_model.encoder.layer) == 4


def test_a_teacher_without_safetensors_is_refused(teacher_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(teacher_path, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no safetensors weights \(it has pytorch_model.bin\)"):
        load_model(str(copy), torch.float32, needs_head=False)


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path), torch.float32, needs_head=False)


def test_a_hub_id_out_of_reach_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model("nobody/no-such-model-12345", torch.float32, needs_head=False)


def test_a_teacher_without_head_is_refused_where_the_head_is_needed(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "headless")
    path = str(tmp_path / "headless")
    with pytest.raises(ModelError, match="no masked-language-modelling head"):
        load_model(path, torch.float32, needs_head=True)
    load_model(path, torch.float32, needs_head=False)


def test_a_teacher_that_lacks_encoder_weights_is_refused(teacher_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "deeper"
    shutil.copytree(teacher_path, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(ModelError, match="lacks weights of its encoder"):
        load_model(str(copy), torch.float32, needs_head=False)


def test_another_vocabulary_is_refused(teacher_path: Path, tmp_path: Path) -> None:
    check_same_vocabulary(str(teacher_path), write_tokenizer(tmp_path / "same"), "shards")
    with pytest.raises(ModelError, match="different vocabularies"):
        check_same_vocabulary(str(teacher_path), write_tokenizer(tmp_path / "other", first_word="x"), "shards")


def test_uniform_layers() -> None:
    assert uniform_layers(3, 12) == [4, 8, 12]
    assert uniform_layers(6, 12) == [2, 4, 6, 8, 10, 12]
    assert uniform_layers(2, 3) == [2, 3]


def test_initialisation_from_teacher_layers(teacher_path: Path) -> None:
    model = student()
    initialise(model, InitialiseRecipe(method="teacher_layers", layers=[1, 4]), str(teacher_path))
    teacher = AutoModelForMaskedLM.from_pretrained(teacher_path)
    for own, layer in ((0, 0), (1, 3)):
        weight = model.bert.encoder.layer[own].output.dense.weight
        assert torch.equal(weight, teacher.bert.encoder.layer[layer].output.dense.weight)
    assert torch.equal(model.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    head = teacher.cls.state_dict()
    assert all(torch.equal(value, head[name]) for name, value in model.cls.state_dict().items())


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (InitialiseRecipe(method="teacher_layers", layers=[1, 5]), {}, "between 1 and 4"),
        (InitialiseRecipe(method="teacher_layers"), {"hidden_size": 16}, "same architecture, width"),
        (InitialiseRecipe(method="teacher_layers"), {"max_positions": 32}, "max_position_embeddings 32, there 64"),
        (InitialiseRecipe(method="checkpoint"), {}, "without a path"),
    ],
)
def test_initialisation_that_cannot_work_is_refused(
    recipe: InitialiseRecipe, changes: dict[str, int], message: str, teacher_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        initialise(student(**changes), recipe, str(teacher_path))


def test_initialisation_from_a_checkpoint(teacher_path: Path) -> None:
    model = student(num_layers=4)
    initialise(model, InitialiseRecipe(method="checkpoint", path=str(teacher_path)), None)
    teacher = AutoModelForMaskedLM.from_pretrained(teacher_path).state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match="does not fit the student: hidden_size 16, there 32"):
        initialise(student(num_layers=4, hidden_size=16),
                   InitialiseRecipe(method="checkpoint", path=str(teacher_path)), None)  # fmt: skip


def test_copied_layers_compute_what_they_computed_with_the_norms_epsilon_of_their_model(
    teacher_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_path, tmp_path / "other")
    config = json.loads((teacher_path / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    model = student(num_layers=4).eval()
    initialise(model, InitialiseRecipe(method="checkpoint", path=str(tmp_path / "other")), None)
    source = AutoModelForMaskedLM.from_pretrained(tmp_path / "other").eval()
    ids = torch.tensor([[2, 9, 4, 3]])
    assert torch.equal(model(ids).logits, source(ids).logits)
    assert model.config.layer_norm_eps == 0.1  # an export has it


def test_layers_of_an_encoder_without_a_head_leave_the_students_own(teacher_path: Path, tmp_path: Path) -> None:
    encoder = AutoModel.from_pretrained(teacher_path)
    encoder.save_pretrained(tmp_path)
    model, as_drawn = student(seed=7), student(seed=7)
    torch.manual_seed(99)  # the head must not hang on what was drawn before
    initialise(model, InitialiseRecipe(method="checkpoint", path=str(tmp_path), layers=[2, 3]), None)
    for own, layer in ((0, 1), (1, 2)):
        copied = encoder.encoder.layer[layer].state_dict()
        assert all(torch.equal(value, copied[k]) for k, value in model.bert.encoder.layer[own].state_dict().items())
    assert torch.equal(model.get_input_embeddings().weight, encoder.get_input_embeddings().weight)
    head = as_drawn.cls.predictions.transform.state_dict()
    assert all(torch.equal(value, head[k]) for k, value in model.cls.predictions.transform.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied


def test_an_export_loads_without_missing_or_unexpected_keys_and_is_the_model(tokenizer: Path, tmp_path: Path) -> None:
    model = student().eval()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    facts = {"name": "n", "objective": "minilm", "seed": 0, "tokens": 10, "flops": 1e9, "budget": "10 tokens",
             "data": "d", "untrained_parameters": ["cls.predictions.bias"]}  # fmt: skip
    export(model, weights, tokenizer, tmp_path / "export", facts)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert isinstance(loaded, BertForMaskedLM)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.tensor([[2, 9, 4, 3]])
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    text = AutoTokenizer.from_pretrained(tmp_path / "export").decode(loaded(ids).logits[0, 2].argmax())
    assert text in AutoTokenizer.from_pretrained(tokenizer).get_vocab()
    assert "cls.predictions.bias" in (tmp_path / "export" / "README.md").read_text()
    with pytest.raises(ValueError, match="lacks weights"):
        export(model, dict(list(weights.items())[1:]), tokenizer, tmp_path / "torn", facts)


def test_an_export_has_the_same_hash_where_the_hub_is_switched_off(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores, and what was seen before, are matched to students by it."""
    model = student()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    facts = {"name": "n", "objective": "scratch", "seed": 0, "tokens": 10, "flops": 1e9, "budget": "10 tokens",
             "data": "d", "untrained_parameters": []}  # fmt: skip
    hashes = set()
    for is_off in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_off)
        export(model, weights, tokenizer, tmp_path / f"export_{is_off}", facts)
        hashes.add(model_hash(tmp_path / f"export_{is_off}"))
    assert len(hashes) == 1
