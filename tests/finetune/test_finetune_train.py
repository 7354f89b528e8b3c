import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_encoder import make_model
from tolerances import FINETUNE_PADDING

from kd_megatron.errors import ModelError, NonFiniteError, OutputError
from kd_megatron.finetune.cell import model as models
from kd_megatron.finetune.cell.batches import EncodedTask, dev_batches, encode_task, train_batches
from kd_megatron.finetune.cell.train import CellResult, build_optimizer, learning_rate_factor, loss_of, run_cell
from kd_megatron.finetune.cell.unfinished import Unfinished
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.tasks import load_task
from kd_megatron.ranks import process
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe

CPU = torch.device("cpu")
CELL = Cell("reviews", 3e-3, 8, seed=1)


@pytest.fixture
def recipe(review_files: tuple[Path, Path]) -> FinetuneRecipe:
    train, dev = review_files
    task = TaskRecipe(name="reviews", train=str(train), dev=str(dev))
    return FinetuneRecipe(tasks=[task], epochs=3, max_length=16, precision="fp32")


@pytest.fixture
def encoded(recipe: FinetuneRecipe, tiny_model: Path) -> EncodedTask:
    return encode_task(load_task(recipe.tasks[0], None), models.load_tokenizer(tiny_model, 16), 16)


def without_times(result: CellResult) -> dict[str, object]:
    return {name: value for name, value in result.content.items() if "second" not in name}


def test_it_learns_and_repeats_to_the_last_digit(tiny_model: Path, encoded: EncodedTask, recipe: FinetuneRecipe):
    heard: list[int] = []
    first = run_cell(tiny_model, encoded, CELL, recipe, CPU, heard.append)
    torch.rand(7)  # whatever the process drew before does not matter
    second = run_cell(tiny_model, encoded, CELL, recipe, CPU)
    assert without_times(first) == without_times(second)
    assert {name: part.tobytes() for name, part in first.predictions.items()} == {
        name: part.tobytes() for name, part in second.predictions.items()
    }
    first = first.content
    assert first["score"] > 0.9
    assert first["num_steps"] == 36 == len(heard)
    assert first["num_examples"] == 3 * 96 == sum(heard)
    curve = first["learning_curve"]
    assert len(curve) == 20
    assert curve[-1]["step"] == 36
    assert curve[-1]["loss"] < curve[0]["loss"]
    other_seed = run_cell(tiny_model, encoded, dataclasses.replace(CELL, seed=2), recipe, CPU).content
    assert other_seed["learning_curve"] != curve


@pytest.mark.parametrize("stop_at", [1, 17, 35])
def test_a_cell_that_was_stopped_goes_on_to_the_same_last_digit(
    tiny_model: Path,
    encoded: EncodedTask,
    recipe: FinetuneRecipe,
    tmp_path: Path,
    stop_at: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("KD_FINETUNE_SAVE_SECONDS", "0")
    recipe = recipe.model_copy(update={"dropout": 0.1, "evaluate_every_epochs": 1.0})
    whole = run_cell(tiny_model, encoded, CELL, recipe, CPU)
    heard: list[int] = []

    def stop(num_examples: int) -> None:
        heard.append(num_examples)
        if len(heard) == stop_at + 1:
            raise KeyboardInterrupt

    kept = Unfinished(tmp_path / "cell.json")
    with pytest.raises(KeyboardInterrupt):
        run_cell(tiny_model, encoded, CELL, recipe, CPU, stop, kept)
    told: list[int] = []
    resumed = run_cell(tiny_model, encoded, CELL, recipe, CPU, told.append, kept)
    assert without_times(resumed) == without_times(whole)
    assert all(resumed.predictions[name].tobytes() == part.tobytes() for name, part in whole.predictions.items())
    assert told[0] == sum(heard[:stop_at])
    assert len(told) == 1 + 36 - stop_at


def test_a_damaged_file_of_an_unfinished_cell_is_said_and_left_out(
    tiny_model: Path, encoded: EncodedTask, recipe: FinetuneRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kept = Unfinished(tmp_path / "cell.json")
    kept.path.write_bytes(b"half a file")
    whole = run_cell(tiny_model, encoded, CELL, recipe, CPU)
    assert without_times(run_cell(tiny_model, encoded, CELL, recipe, CPU, unfinished=kept)) == without_times(whole)
    assert "the cell starts anew" in " ".join(capsys.readouterr().err.split())


def test_a_rank_other_than_0_tells_of_its_damaged_file_too(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(process, "rank", lambda: 1)
    kept = Unfinished(tmp_path / "cell.json")
    kept.path.write_bytes(b"half a file")
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0)
    assert kept.restore(model, torch.optim.AdamW(model.parameters())) is None
    assert "warning: rank 1: " in " ".join(capsys.readouterr().err.split())


def test_a_cell_leaves_the_random_state_alone(tiny_model: Path, encoded: EncodedTask, recipe: FinetuneRecipe):
    before = torch.get_rng_state()
    run_cell(tiny_model, encoded, CELL, recipe, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_the_head_depends_on_the_seed_alone(tiny_model: Path, tmp_path: Path):
    other_model = make_model(tmp_path / "other", seed=9)
    heads = []
    for path, seed in ((tiny_model, 1), (other_model, 1), (tiny_model, 2)):
        torch.manual_seed(len(heads))
        parameters = dict(models.load_classifier(path, 2, regression=False, seed=seed).named_parameters())
        heads.append([parameters["classifier.weight"], parameters["bert.pooler.dense.weight"]])
    assert all(torch.equal(a, b) for a, b in zip(heads[0], heads[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(heads[0], heads[2], strict=True))


def test_bf16_autocast_learns_too(tiny_model: Path, encoded: EncodedTask, recipe: FinetuneRecipe):
    assert (
        run_cell(tiny_model, encoded, CELL, recipe.model_copy(update={"precision": "bf16"}), CPU).content["score"] > 0.9
    )


def test_regression(tiny_model: Path, recipe: FinetuneRecipe, tmp_path: Path, review_files: tuple[Path, Path]):
    files = [tmp_path / "train_values.tsv", tmp_path / "dev_values.tsv"]
    for source, target in zip(review_files, files, strict=True):
        target.write_text(source.read_text().replace("\tgood", "\t4.5").replace("\tbad", "\t0.5"))
    task = load_task(TaskRecipe(name="values", train=str(files[0]), dev=str(files[1]), type="regression"), None)
    encoded = encode_task(task, models.load_tokenizer(tiny_model, 16), 16)
    longer = recipe.model_copy(update={"epochs": 10.0})  # the mean of the labels takes a while to be learned
    content = run_cell(tiny_model, encoded, dataclasses.replace(CELL, task="values"), longer, CPU).content
    assert set(content["metrics"]) == {"pearson", "spearman"}
    assert content["metrics"]["pearson"] > 0.8


def test_losses_by_hand():
    assert loss_of(torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, 1.0])).item() == 2.0
    assert loss_of(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])).item() == pytest.approx(math.log(2))


def test_the_learning_rate_rises_then_falls_linearly(recipe: FinetuneRecipe):
    warm = recipe.model_copy(update={"warmup_fraction": 0.2})
    factors = [learning_rate_factor(step, 10, warm) for step in range(10)]
    assert factors == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert learning_rate_factor(0, 4, recipe.model_copy(update={"warmup_fraction": 0.0})) == 1.0


def test_biases_and_norms_do_not_decay(tiny_model: Path, recipe: FinetuneRecipe):
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0)
    optimizer = build_optimizer(model, 1e-3, recipe.model_copy(update={"weight_decay": 0.1}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert (optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[1]["weight_decay"]) == (0.1, 0.0)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in kept)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in decayed)
    assert decayed | kept == set(names.values())


def test_batches_cover_each_epoch_once_in_an_order_of_the_seed():
    lengths = np.random.default_rng(0).integers(4, 60, 103)
    batches = list(train_batches(lengths, 8, seed=3, num_steps=26))
    assert [len(batch) for batch in batches].count(7) == 2
    for epoch in (batches[:13], batches[13:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(103))
    assert not np.array_equal(np.concatenate(batches[:13]), np.concatenate(batches[13:]))
    again = list(train_batches(lengths, 8, seed=3, num_steps=26))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not np.array_equal(batches[0], next(train_batches(lengths, 8, seed=4, num_steps=1)))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches[:13])
    assert padded < 1.1 * lengths.sum()
    assert sorted(np.concatenate(list(dev_batches(lengths, 8))).tolist()) == list(range(103))


def test_padding_changes_no_logit(tiny_model: Path, encoded: EncodedTask):
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0).eval()
    longest, shortest = int(encoded.train.lengths.argmax()), int(encoded.train.lengths.argmin())
    with torch.inference_mode():
        alone = model(**encoded.train.batch(np.array([shortest]), CPU)[0]).logits
        padded = model(**encoded.train.batch(np.array([longest, shortest]), CPU)[0]).logits
    torch.testing.assert_close(alone[0], padded[1], atol=FINETUNE_PADDING, rtol=0)


def test_divergence_is_an_error(tiny_model: Path, encoded: EncodedTask, recipe: FinetuneRecipe, tmp_path: Path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7, 0] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"reviews lr 0\.003 batch 8 seed 1: the loss is not finite by step"):
        run_cell(broken, encoded, CELL, recipe, CPU)


def _fresh(tiny_model: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0)
    return model, torch.optim.AdamW(model.parameters())


def test_an_unfinished_cell_of_another_device_or_model_is_said_and_left_out(
    tiny_model: Path,
    encoded: EncodedTask,
    recipe: FinetuneRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("KD_FINETUNE_SAVE_SECONDS", "0")
    kept = Unfinished(tmp_path / "cell.json")
    whole = run_cell(tiny_model, encoded, CELL, recipe, CPU, unfinished=kept)
    tensors = load_file(kept.path)
    with safe_open(kept.path, "pt") as file:
        measured = file.metadata()
    tensors["generator.elsewhere"] = tensors.pop("generator.cpu")
    save_file(tensors, kept.path, measured)
    again = run_cell(tiny_model, encoded, CELL, recipe, CPU, unfinished=Unfinished(tmp_path / "cell.json"))
    assert without_times(again) == without_times(whole)
    assert "does not fit (no generator.cpu of" in "".join(capsys.readouterr()).replace("\n", " ")
    tensors["generator.cpu"] = tensors["generator.elsewhere"].clone()  # of a GPU as well, whose dropout draws otherwise
    save_file(tensors, kept.path, measured)
    assert Unfinished(tmp_path / "cell.json").restore(*_fresh(tiny_model)) is None
    assert "does not fit (generator.elsewhere is of another device)" in capsys.readouterr().err.replace("\n", " ")


def test_a_save_that_fails_or_is_killed_leaves_nothing_behind(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0)
    kept, aside = Unfinished(tmp_path / "cell.json"), tmp_path / "cell.unfinished.safetensors.partial"

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("kd_megatron.finetune.cell.unfinished.save_file", full)
        with pytest.raises(OutputError, match="no space left"):
            kept.save(model, torch.optim.AdamW(model.parameters()), {})
    assert not aside.exists()
    aside.write_bytes(b"of a process that was killed")
    kept.remove()
    assert not aside.exists()


def test_models_that_cannot_be_used(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        models.check_directory(tmp_path / "absent")
    pickled = shutil.copytree(tiny_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has no \.safetensors file"):
        models.check_directory(pickled)
    no_tokenizer = shutil.copytree(tiny_model, tmp_path / "no_tokenizer")
    for file in no_tokenizer.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        models.check_directory(no_tokenizer)
    shutil.copy(tiny_model / "tokenizer_config.json", no_tokenizer)  # the library makes one without words of it
    with pytest.raises(ModelError, match="no file with its vocabulary"):
        models.check_directory(no_tokenizer)
    torn = shutil.copytree(tiny_model, tmp_path / "torn")
    content = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded as a classifier"):
        models.load_classifier(torn, 2, regression=False, seed=0)
    with pytest.raises(ModelError, match=r"max_length 64; .* has 32 positions"):
        models.load_tokenizer(tiny_model, 64)


def test_a_checkpoint_without_encoder_weights_is_refused(tiny_model: Path, tmp_path: Path):
    partial = shutil.copytree(tiny_model, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layer.1." not in name}
    save_file(kept, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 16 weights of the encoder, such as bert\.encoder\.layer\.1\."):
        models.load_classifier(partial, 2, regression=False, seed=0)
