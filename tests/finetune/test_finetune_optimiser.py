"""The optimiser recipe: equal to plain transformers and torch, the presets as their sources have them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tolerances import FINETUNE_20_STEPS_RELATIVE, REORDERED_FLOAT64_RELATIVE
from torch import nn

from kd_megatron.errors import RecipeError
from kd_megatron.finetune.cell import model as models
from kd_megatron.finetune.cell.batches import encode_task, train_batches
from kd_megatron.finetune.cell.train import CellResult, build_optimizer, learning_rate_factor, run_cell
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.tasks import Task, load_task
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe, config
from kd_megatron.recipe.presets import PRESETS

CPU = torch.device("cpu")
NUM_STEPS = 20
SCHEDULES = {
    "polynomial": lambda optimizer, warm, steps: transformers.get_polynomial_decay_schedule_with_warmup(
        optimizer, warm, steps, lr_end=0.0, power=2.0
    ),
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, warm, steps: transformers.get_constant_schedule_with_warmup(optimizer, warm),
}


@pytest.fixture
def task(review_files: tuple[Path, Path]) -> Task:
    train, dev = map(str, review_files)
    return load_task(TaskRecipe(name="reviews", train=train, dev=dev), None)


def recipe_of(**changes: Any) -> FinetuneRecipe:
    raw = {"tasks": [{"name": "reviews"}], "epochs": NUM_STEPS / 12, "max_length": 16, "precision": "fp32"}
    return config.validate(FinetuneRecipe, {**raw, **changes}, "a test")


def run(model: Path, task: Task, **changes: Any) -> CellResult:
    encoded = encode_task(task, models.load_tokenizer(model, 16), 16)
    return run_cell(model, encoded, Cell("reviews", 1e-3, 8, seed=1), recipe_of(**changes), CPU)


def rates_of_transformers(schedule: str, num_steps: int, num_warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = SCHEDULES[schedule](optimizer, num_warmup, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.25])
def test_schedules_are_those_of_transformers(schedule: str, warmup_fraction: float):
    recipe = recipe_of(schedule=schedule, warmup_fraction=warmup_fraction, decay_power=2.0)
    ours = [learning_rate_factor(step, 40, recipe) for step in range(40)]
    num_warmup = round(40 * warmup_fraction)
    theirs = rates_of_transformers(schedule, 40, num_warmup)
    assert ours[num_warmup:] == pytest.approx(theirs[num_warmup:], rel=REORDERED_FLOAT64_RELATIVE)
    assert ours[: max(0, num_warmup - 1)] == pytest.approx(theirs[1:num_warmup], rel=REORDERED_FLOAT64_RELATIVE)
    assert ours[0] > 0, "no step is lost to a rate of zero"


def by_hand(model_path: Path, task: Task, recipe: FinetuneRecipe) -> tuple[list[float], np.ndarray]:
    """Losses and dev logits of the same fine-tuning, written out with transformers and torch alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2)
    head = models.load_classifier(model_path, 2, False, seed=1)  # the same head to start from
    model.load_state_dict(head.state_dict())
    undecayed = {name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name}
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in undecayed) == plain], "weight_decay": decay}
        for plain, decay in ((False, recipe.weight_decay), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=tuple(recipe.betas), eps=recipe.epsilon, foreach=False)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 0, NUM_STEPS)
    lengths = np.array([len(ids) for ids in tokenizer(task.train.first)["input_ids"]])
    losses = []
    torch.manual_seed(1)
    model.train()
    for indices in train_batches(lengths, 8, 1, NUM_STEPS):
        inputs = tokenizer([task.train.first[i] for i in indices], padding=True, return_tensors="pt")
        loss = model(**inputs, labels=torch.tensor([int(task.train.labels[i]) for i in indices])).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        dev = tokenizer(task.devs["dev"].first, padding=True, return_tensors="pt")
        return losses, model(**dev).logits.numpy()


def test_a_cell_is_what_transformers_and_torch_give_by_hand(tiny_model: Path, task: Task):
    changes = {"warmup_fraction": 0.0, "weight_decay": 0.1}
    result = run(tiny_model, task, **changes)
    losses, logits = by_hand(tiny_model, task, recipe_of(**changes))
    curve = result.content["learning_curve"]
    assert [point["step"] for point in curve] == list(range(1, NUM_STEPS + 1))
    assert [point["loss"] for point in curve] == pytest.approx(losses, rel=FINETUNE_20_STEPS_RELATIVE)
    assert curve[-1]["learning_rate"] == pytest.approx(1e-3 / NUM_STEPS)
    np.testing.assert_allclose(result.predictions["dev"], logits, atol=FINETUNE_20_STEPS_RELATIVE * abs(logits).max())
    # The comparison sees what it should: a recipe that differs a little is further away than rounding.
    other = run(tiny_model, task, **changes, epsilon=1e-6).content["learning_curve"]
    assert [point["loss"] for point in other] != pytest.approx(losses, rel=FINETUNE_20_STEPS_RELATIVE)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_clipping": None},
        {"betas": [0.9, 0.98]},
        {"epsilon": 1e-4},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"decay_power": 2.0},
        {"warmup_fraction": 0.5},
        {"dropout": 0.3},
    ],
    ids=lambda change: "-".join(f"{key}_{value}" for key, value in change.items()),
)
def test_every_key_changes_what_is_learned(tiny_model: Path, task: Task, change: dict[str, Any]):
    six_steps = {"epochs": 0.5, "gradient_clipping": 0.01}
    plain, changed = run(tiny_model, task, **six_steps), run(tiny_model, task, **{**six_steps, **change})
    assert not np.array_equal(plain.predictions["dev"], changed.predictions["dev"])


def test_dev_metrics_on_the_way_change_nothing_at_the_end(tiny_model: Path, task: Task):
    changes = {"epochs": 3}
    once, often = run(tiny_model, task, **changes), run(tiny_model, task, **changes, evaluate_every_epochs=0.75)
    assert [point["step"] for point in often.content["dev_curve"]] == [9, 18, 27]
    assert all(0 <= point["accuracy"] <= 1 for point in often.content["dev_curve"])
    assert once.content["dev_curve"] == []
    assert once.content["learning_curve"] == often.content["learning_curve"]
    assert np.array_equal(once.predictions["dev"], often.predictions["dev"])
    whole = run(tiny_model, task, **changes, evaluate_every_epochs=3).content
    assert whole["dev_curve"] == [], "the last step is scored in any case"


def test_presets_fill_in_what_the_recipe_does_not_give():
    sane = recipe_of(preset="sane", epochs=3, grid={"batch_sizes": [8]})
    assert (sane.schedule, sane.betas, sane.gradient_clipping, sane.dropout) == ("cosine", [0.9, 0.98], None, 0.1)
    assert sane.grid.model_dump() == {"learning_rates": [4e-5], "batch_sizes": [8]}
    assert (sane.epochs, sane.max_length) == (3.0, 16), "what is given wins"
    assert recipe_of(preset="study") == recipe_of().model_copy(update={"preset": "study"})
    assert FinetuneRecipe.model_validate(sane.model_dump()) == sane
    with pytest.raises(RecipeError, match="preset: Input should be 'study', 'sane' or 'small_data'"):
        recipe_of(preset="insane")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_settle_all_that_training_depends_on(name: str):
    settled = {
        "grid",
        "epochs",
        "min_steps",
        "max_length",
        "schedule",
        "decay_power",
        "warmup_fraction",
        "weight_decay",
    }
    assert set(PRESETS[name]) == settled | {"betas", "epsilon", "gradient_clipping", "dropout"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, r"betas\.1"),
        ({"dropout": 1.0}, "dropout"),
        ({"gradient_clipping": 0.0}, "gradient_clipping"),
        ({"schedule": "linear"}, "schedule: Input should be 'polynomial', 'cosine' or 'constant'"),
        ({"selection": {"on": "test"}}, r"selection\.on: Input should be 'dev' or 'train_slice'"),
        ({"selection": {"fraction": 1.0}}, r"selection\.fraction"),
        ({"untrained_top": "reinitialize"}, "untrained_top: Input should be 'keep', 'drop' or 'reinitialise'"),
        ({"seeds": [1, 1]}, r"seeds are given twice: \[1\]"),
        ({"halvng": True}, "unknown key halvng; .*halving"),
    ],
)
def test_values_that_cannot_be_used(change: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        recipe_of(**change)


def test_the_optimizer_has_the_recipes_constants(tiny_model: Path):
    model = models.load_classifier(tiny_model, 2, regression=False, seed=0)
    optimizer = build_optimizer(model, 1e-3, recipe_of(preset="sane"))
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"], group["weight_decay"]) == ((0.9, 0.98), 1e-6, 1e-3, 0.0)
