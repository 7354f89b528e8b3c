"""What the recipe may change in the model before it is fine-tuned: dropout, and weights that were never trained."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from kd_megatron.errors import ModelError
from kd_megatron.finetune.cell.batches import encode_task
from kd_megatron.finetune.cell.model import load_classifier, load_tokenizer, require_dropout, set_dropout
from kd_megatron.finetune.cell.train import run_cell
from kd_megatron.finetune.cell.untrained import UntrainedTop, read_untrained_top
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DISTILBERT = {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
ENCODERS = {
    "bert": transformers.BertConfig(**SIZES),
    "roberta": transformers.RobertaConfig(**SIZES),
    "distilbert": transformers.DistilBertConfig(**DISTILBERT),
    "deberta-v2": transformers.DebertaV2Config(**SIZES),
    "electra": transformers.ElectraConfig(**SIZES, embedding_size=16),
    "mpnet": transformers.MPNetConfig(**SIZES),
    "modernbert": transformers.ModernBertConfig(**SIZES, pad_token_id=0, global_attn_every_n_layers=2),
    "albert": transformers.AlbertConfig(**SIZES, embedding_size=16),
}
# As MiniLM leaves a student whose last relations are those of the last layer; its lost pretraining head is no matter.
TOP = "bert.encoder.layer.1"
UNTRAINED = [
    f"{TOP}.attention.output.dense.weight",
    f"{TOP}.attention.output.LayerNorm.weight",
    f"{TOP}.output.dense.weight",
    f"{TOP}.output.dense.bias",
]
CARD = [*UNTRAINED, "cls.predictions.bias"]


@pytest.fixture
def student(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with weights in its untrained top that no initialisation gives, and a card that lists them."""
    path = shutil.copytree(tiny_model, tmp_path / "student")
    weights = load_file(path / "model.safetensors")
    for name in UNTRAINED:
        weights[name] = torch.full_like(weights[name], 0.5)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return write_card(path, CARD)


def write_card(path: Path, names: Any) -> Path:
    (path / "kd_megatron.json").write_text(json.dumps({"untrained_parameters": names}))
    return path


def load(path: Path, seed: int = 1, dropout: float | None = None, action: str = "keep") -> nn.Module:
    return load_classifier(path, 2, False, seed, dropout, read_untrained_top(path, action))


@pytest.mark.parametrize("name", ENCODERS)
def test_dropout_reaches_all_of_every_architecture(name: str, tmp_path: Path):
    model = transformers.AutoModel.from_config(ENCODERS[name])
    model.save_pretrained(tmp_path)
    for dropout in (0.0, 0.3):
        loaded = load(tmp_path, dropout=dropout)
        modules = [module.p for module in loaded.modules() if isinstance(module, nn.Dropout)]
        assert len(modules) > 2
        assert set(modules) == {dropout}
        values = {value for key, value in loaded.config.to_dict().items() if "dropout" in key}
        assert values == {dropout}
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10)}
    train, evaluation = (load(tmp_path, dropout=0.0).train(mode)(**inputs).logits for mode in (True, False))
    assert torch.equal(train, evaluation), "no dropout is left anywhere"
    model = load(tmp_path, dropout=0.3).train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_architecture_goes_with_a_tokenizer_of_any_class(
    name: str, tiny_model: Path, review_files: tuple[Path, Path], tmp_path: Path
):
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | names))
    transformers.AutoModel.from_config(ENCODERS[name]).save_pretrained(tmp_path / "model")
    train, dev = map(str, review_files)
    task = load_task(TaskRecipe(name="reviews", train=train, dev=dev), None)
    encoded = encode_task(task, load_tokenizer(tmp_path / "model", 16), 16)
    assert (encoded.train.tokens.types is None) == (name in ("distilbert", "mpnet", "modernbert"))
    recipe = FinetuneRecipe(tasks=[TaskRecipe(name="reviews")], epochs=0.5, max_length=16, precision="fp32")
    content = run_cell(tmp_path / "model", encoded, Cell("reviews", 1e-3, 8, 0), recipe, torch.device("cpu")).content
    assert content["num_steps"] == 6


def test_a_model_that_cannot_classify(tiny_model: Path, tmp_path: Path):
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'vit', which has no classifier in transformers"):
        load_tokenizer(tmp_path, 16)


def test_without_a_number_the_models_own_dropout_stays(tiny_model: Path):
    assert {module.p for module in load(tiny_model).modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_keep_starts_from_the_weights_as_they_are(student: Path):
    top = read_untrained_top(student, "keep")
    assert top.names == tuple(UNTRAINED)
    assert top.describe() == {"action": "keep", "num_parameters": 4, "num_layers_left": 2}
    assert "4 parameters were never trained, such as bert.encoder.layer.1" in str(top)
    kept = load(student)
    assert all((kept.get_parameter(name) == 0.5).all() for name in UNTRAINED)


def test_reinitialise_draws_them_from_the_seed_alone(student: Path, tiny_model: Path):
    first, again, other = (load(student, seed, action="reinitialise") for seed in (1, 1, 2))
    plain = load(tiny_model)
    for name in UNTRAINED:
        drawn, twin, different = (model.get_parameter(name) for model in (first, again, other))
        assert torch.equal(drawn, twin)
        if drawn.ndim == 2:
            assert not torch.equal(drawn, different)
            assert drawn.std().item() == pytest.approx(0.02, rel=0.1)  # 1,024 draws: a spread of 2.2 %
        else:
            assert (drawn == (0.0 if name.endswith("bias") else 1.0)).all()
    others = {name for name, _ in plain.named_parameters()} - set(UNTRAINED)
    for name in others:
        assert torch.equal(first.get_parameter(name), plain.get_parameter(name)), "nothing else is touched"


def test_drop_takes_the_layers_off(student: Path, tiny_model: Path):
    dropped, plain = load(student, action="drop"), load(tiny_model)
    assert read_untrained_top(student, "drop").num_layers_left == 1
    names = [name for name, _ in dropped.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters() if not name.startswith(TOP)]
    assert all(torch.equal(dropped.get_parameter(name), plain.get_parameter(name)) for name in names)
    assert dropped(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "deberta-v2", "electra", "mpnet", "modernbert"])
def test_layers_come_off_every_architecture(name: str, tmp_path: Path):
    model = transformers.AutoModel.from_config(ENCODERS[name])
    model.save_pretrained(tmp_path)
    top = [key for key, _ in model.named_parameters() if ".1." in key]
    write_card(tmp_path, top)  # as a headless encoder names them
    dropped = load(tmp_path, action="drop")
    left = {number for key, _ in dropped.named_parameters() for number in re.findall(r"layers?\.(\d)\.", key)}
    assert left == {"0"}
    assert dropped(input_ids=torch.tensor([[5, 6, 7]])).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["bert.embeddings.word_embeddings.weight"], "word_embeddings.weight, which is in no layer"),
        (["bert.encoder.layer.0.output.dense.weight"], r"layers \[0\] of 2"),
        ([f"bert.encoder.layer.{index}.output.dense.weight" for index in (0, 1)], r"layers \[0, 1\] of 2"),
    ],
)
def test_what_is_not_a_top_cannot_be_dropped(student: Path, names: list[str], given: str):
    write_card(student, names)
    with pytest.raises(ModelError, match=f"untrained_top: drop, but .* are in .*{given}"):
        read_untrained_top(student, "drop")
    assert read_untrained_top(student, "reinitialise").names == tuple(names)


def test_a_lost_pretraining_head_is_no_untrained_top(student: Path):
    top = read_untrained_top(write_card(student, ["cls.predictions.bias"]), "drop")
    assert (top.names, top.describe(), top.identity("hash")) == ((), None, "hash")
    assert len(load(student, action="drop").bert.encoder.layer) == 2


def test_what_is_done_is_part_of_a_cells_identity():
    identities = {UntrainedTop("drop", names, 3, 2).identity("hash") for names in (("a",), ("b",), ())}
    assert len(identities) == 3
    assert UntrainedTop("keep", ("a",)).identity("hash") == "hash"


@pytest.mark.parametrize("text", ["{", '["a"]', '{"untrained_parameters": 3}'])
def test_a_card_that_cannot_be_read(student: Path, text: str):
    (student / "kd_megatron.json").write_text(text)
    with pytest.raises(ModelError, match="is not a valid card"):
        read_untrained_top(student, "keep")


def test_dropout_that_cannot_be_set():
    with pytest.raises(ModelError, match=r"dropout: 0\.3, but the configuration of somewhere has no dropout"):
        set_dropout(transformers.PretrainedConfig(), 0.3, Path("somewhere"))
    set_dropout(transformers.PretrainedConfig(), 0.0, Path("somewhere"))
    with pytest.raises(ModelError, match=r"dropout: 0\.3, but 1 of somewhere keeps 0\.2"):
        require_dropout(nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.2)), 0.3, Path("somewhere"))


def test_the_head_of_a_checkpoint_that_is_a_classifier_is_drawn_anew(tiny_model: Path, tmp_path: Path):
    trained = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    nn.init.constant_(trained.classifier.weight, 7.0)
    nn.init.constant_(trained.classifier.bias, 7.0)
    trained.save_pretrained(tmp_path / "classifier")
    for num_outputs in (1, 2, 3):  # as many as before, and other numbers
        first, second, fresh = (
            load_classifier(path, num_outputs, regression=num_outputs == 1, seed=seed).state_dict()
            for path, seed in ((tmp_path / "classifier", 0), (tmp_path / "classifier", 1), (tiny_model, 0))
        )
        assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
        assert torch.equal(first["classifier.weight"], fresh["classifier.weight"]), "of the seed alone"
        assert torch.equal(first["classifier.bias"], torch.zeros(num_outputs))
        assert torch.equal(first["bert.embeddings.word_embeddings.weight"], trained.get_input_embeddings().weight)


def test_positions_that_padding_takes_are_not_offered(tmp_path: Path, tiny_model: Path):
    path = shutil.copytree(tiny_model, tmp_path / "mpnet")
    sizes = {**SIZES, "max_position_embeddings": 32, "pad_token_id": 0}
    transformers.MPNetConfig(**sizes).save_pretrained(path)
    load_tokenizer(path, 31)
    with pytest.raises(ModelError, match="has 31 positions"):
        load_tokenizer(path, 32)
