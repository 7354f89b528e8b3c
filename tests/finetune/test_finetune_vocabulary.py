from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tolerances import FINETUNE_FEWER_ROWS
from torch import nn

from kd_megatron.finetune.cell.batches import EncodedSplit, EncodedTask
from kd_megatron.finetune.cell.tokens import Tokens
from kd_megatron.finetune.cell.train import CellResult, run_cell
from kd_megatron.finetune.cell.vocabulary import compact, keep_rows, rows_in_use
from kd_megatron.finetune.places import Cell
from kd_megatron.finetune.tasks.metrics import METRICS
from kd_megatron.finetune.tasks.tasks import Split, Task
from kd_megatron.recipe import FinetuneRecipe, TaskRecipe

VOCAB = 1600  # more than vocabulary.LOW
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
POSITIONS = {"vocab_size": VOCAB, "max_position_embeddings": 40}
HEAD = 40  # ids of the texts lie above it


def task_of(pad: int, bounds: tuple[int, int], num: int = 48) -> EncodedTask:
    """Label 1 where an example begins with the first of the ids in use; train, dev and test share few ids."""
    generator = np.random.default_rng(0)

    def split(number: int) -> EncodedSplit:
        lengths = generator.integers(4, 12, num)
        ids = generator.integers(HEAD, VOCAB - HEAD, (num, 12)).astype(np.int32) // 3 * 3 + number
        labels = torch.arange(num) % 2
        ids[:, 0], ids[np.arange(num), lengths - 1] = bounds
        ids[:, 1] = np.where(labels.numpy() == 1, HEAD, HEAD + 1)
        flat = np.concatenate([row[:length] for row, length in zip(ids, lengths, strict=True)])
        return EncodedSplit(Tokens(flat, None, lengths, 0), labels, pad)

    texts = Split([""] * num, None, [float(i % 2) for i in range(num)])
    task = Task("made_up", ("a", "b"), METRICS["accuracy"], texts, {"dev": texts}, False, "")
    return EncodedTask(task, split(0), {"dev": split(1)}, {"test": split(2)})


def low_ids(kind: str, **more: Any) -> tuple[Any, EncodedTask, list[int]]:
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **POSITIONS, **more})
    return config, task_of(pad=config.pad_token_id, bounds=(2, 3)), [0, 1, 2, 3]


def make(case: str) -> tuple[nn.Module, EncodedTask, list[int]]:
    torch.manual_seed(0)
    if case == "modernbert":  # whose special tokens are the last ones
        special = {"pad_token_id": VOCAB - 1, "cls_token_id": VOCAB - 3, "sep_token_id": VOCAB - 2}
        config, _, _ = low_ids(case, global_attn_every_n_layers=2, **special)
        encoded = task_of(VOCAB - 1, (VOCAB - 3, VOCAB - 2))
        special_ids = list(special.values())
    else:
        config, encoded, special_ids = low_ids(case, **{"electra": {"embedding_size": 16}}.get(case, {}))
    return transformers.AutoModelForSequenceClassification.from_config(config), encoded, special_ids


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert"])
def test_encoders_say_the_same_with_fewer_rows(case: str):
    model, encoded, special_ids = make(case)
    whole = make(case)[0].eval()
    fewer = compact(encoded, model, special_ids)
    assert fewer.rows is not None
    assert model.get_input_embeddings().weight.shape[0] == len(fewer.rows) < VOCAB
    for name, split in fewer.splits().items():
        indices = np.arange(len(split))
        inputs, original = (each.batch(indices, torch.device("cpu"))[0] for each in (split, encoded.splits()[name]))
        assert np.array_equal(fewer.rows[inputs["input_ids"]], original["input_ids"])
        with torch.inference_mode():
            assert torch.equal(model(**inputs).logits, whole(**original).logits)
    if case != "modernbert":
        assert np.array_equal(fewer.rows[:4], [0, 1, 2, 3]), "low special ids keep their number"


def test_a_model_that_reads_more_into_ids_keeps_all_rows():
    # GPT-2 classifies by the last token before padding, which it knows by its number.
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=40, n_embd=32, n_layer=1, n_head=2, num_labels=2, pad_token_id=VOCAB - 1
    )
    encoded = task_of(VOCAB - 1, (VOCAB - 3, VOCAB - 2))
    model = transformers.GPT2ForSequenceClassification(config)
    assert compact(encoded, model, []) is encoded


def test_shared_embeddings_and_vocabularies_in_full_use_keep_all_rows():
    model, encoded, special_ids = make("bert")
    model.another = nn.Embedding(VOCAB, SIZES["hidden_size"])
    model.another.weight = model.get_input_embeddings().weight
    assert compact(encoded, model, special_ids) is encoded
    del model.another
    almost_all = task_of(pad=0, bounds=(2, 3), num=600)
    assert compact(almost_all, model, special_ids) is almost_all
    assert compact(encoded, model, special_ids).rows is not None


def test_rows_of_every_split_and_of_padding_are_kept():
    encoded = task_of(pad=7, bounds=(2, 3))
    rows = rows_in_use(encoded, VOCAB, [0, 2, 3, 5, VOCAB - 1])
    ids = np.concatenate([split.tokens.ids for split in encoded.splits().values()])
    assert set(rows) == {*ids.tolist(), *range(6), 7}
    model = make("bert")[0]
    before = model.get_input_embeddings().weight.detach().clone()
    keep_rows(model, rows)
    embedding = model.get_input_embeddings()
    assert torch.equal(embedding.weight, before[torch.from_numpy(rows)])
    assert (embedding.num_embeddings, embedding.padding_idx) == (len(rows), 0)


def recipe(**changes: Any) -> FinetuneRecipe:
    return FinetuneRecipe(tasks=[TaskRecipe(name="made_up")], epochs=5, max_length=16, precision="fp32", **changes)


def run_both(tmp_path: Path, **changes: Any) -> tuple[CellResult, CellResult]:
    model, encoded, special_ids = make("bert")
    model.save_pretrained(tmp_path)
    fewer = compact(encoded, model, special_ids)
    assert fewer.rows is not None
    cell = Cell("made_up", 3e-3, 8, seed=1)
    whole, cut = (run_cell(tmp_path, each, cell, recipe(**changes), torch.device("cpu")) for each in (encoded, fewer))
    return whole, cut


def losses(result: CellResult) -> list[float]:
    return [point["loss"] for point in result.content["learning_curve"]]


def test_training_without_clipping_is_the_same_to_the_last_digit(tmp_path: Path):
    whole, cut = run_both(tmp_path, gradient_clipping=None)
    assert losses(whole) == losses(cut)
    assert all(np.array_equal(cut.predictions[name], outputs) for name, outputs in whole.predictions.items())
    assert losses(cut)[-1] < 0.9 * losses(cut)[0], "it did learn"


def test_training_with_clipping_is_the_same_but_for_the_order_of_a_sum(tmp_path: Path):
    whole, cut = run_both(tmp_path, gradient_clipping=0.1)
    assert losses(cut) == pytest.approx(losses(whole), abs=FINETUNE_FEWER_ROWS)
    assert whole.content["metrics"] == cut.content["metrics"]
