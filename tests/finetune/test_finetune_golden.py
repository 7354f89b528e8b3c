"""One golden run: the whole stage with a tiny model on the embedded tasks, its losses and metrics recorded beside this.

The texts come from the installed packages, so it holds for the versions of requirements.txt alone. A change of numbers
is recorded again, in a commit of its own that explains it, with:
    PYTHONPATH=.:tests python tests/finetune/test_finetune_golden.py
"""

import collections
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tolerances import FINETUNE_GOLDEN_LOSS_RELATIVE, FINETUNE_GOLDEN_ROWS
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from kd_megatron.finetune.grid.grid import run_grid
from kd_megatron.finetune.tasks import embedded
from kd_megatron.recipe import FinetuneRecipe

GOLDEN = Path(__file__).with_name("golden_run.json")
MAX_MODULES, NUM_TRAIN, NUM_DEV = 50, 480, 80
RECIPE = {
    "tasks": [{"name": name, "train": "embedded"} for name in embedded.TASKS],
    "grid": {"learning_rates": [2e-3], "batch_sizes": [16]},
    "crossed_seeds": True,  # what was recorded was drawn from the listed seed itself
    "epochs": 3,
    "max_length": 32,
    "precision": "fp32",
    "tensorboard": False,
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def golden_run(directory: Path) -> dict[str, Any]:
    """Make the tasks and the model under ``directory``, fine-tune, and return what is to be remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)  # the tasks are kept under the working directory
        patch.setattr(embedded, "MAX_MODULES", MAX_MODULES)
        documents = list(embedded._documents())
        patch.setattr(embedded, "_documents", lambda: iter(documents))
        build = embedded.build
        patch.setattr(embedded, "build", lambda name: build(name, NUM_TRAIN, NUM_DEV))
        make_model(directory / "model", [text for _, _, text in documents])
        summary = run_grid(directory / "model", FinetuneRecipe.model_validate(RECIPE), directory / "out")
    found: dict[str, Any] = {"texts": embedded._key(), "average": summary["average"], "cells": {}}
    for path in sorted((directory / "out").glob("*/cells/*.json")):
        cell = json.loads(path.read_text())
        losses = [point["loss"] for point in cell["learning_curve"]]
        name = f"{cell['task']} {cell['learning_rate']:g}"
        found["cells"][name] = {"losses": losses, "metrics": cell["metrics"], "num_steps": cell["num_steps"]}
    return found


def make_model(directory: Path, documents: list[str]) -> None:
    """A BERT of 2 layers x 64 with the 1,500 commonest words."""
    counts = collections.Counter(word for text in documents for word in text.lower().split() if word.isalpha())
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1500]]
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(directory)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(directory)


def test_the_golden_run_is_reproduced(tmp_path: Path):
    golden = json.loads(GOLDEN.read_text())
    if golden["texts"] != embedded._key():
        pytest.skip("the texts are docstrings of installed packages, which have other versions than the recorded ones")
    found = golden_run(tmp_path)
    assert found["cells"].keys() == golden["cells"].keys()
    for name, cell in golden["cells"].items():
        ours = found["cells"][name]
        assert ours["num_steps"] == cell["num_steps"]
        assert ours["losses"] == pytest.approx(cell["losses"], rel=FINETUNE_GOLDEN_LOSS_RELATIVE), name
        wrong = abs(ours["metrics"]["accuracy"] - cell["metrics"]["accuracy"]) * NUM_DEV
        assert round(wrong) <= FINETUNE_GOLDEN_ROWS, name
    assert found["average"] == pytest.approx(golden["average"], abs=FINETUNE_GOLDEN_ROWS / NUM_DEV)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(golden_run(Path(scratch)), indent=1) + "\n")
