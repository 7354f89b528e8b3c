"""A study small enough for tests: real shards, a real (random, peaky) teacher, all four objectives."""

from pathlib import Path
from typing import Any

import torch
from small_shards import SPECIALS, VOCAB_SIZE, random_documents, write_shard_set
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from kd_megatron.recipe import StudyRecipe

ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"objective": "scratch"},
    "vanilla_kd": {"objective": "vanilla_kd"},
    "minilm": {"objective": "minilm", "num_relation_heads": 4},
    "tinybert": {"objective": "tinybert"},
}


def write_inputs(directory: Path, **teacher: Any) -> Path:
    """Shards in ``directory``/shards and a teacher (with changed sizes) in ``directory``/teacher."""
    documents = {"train-00000": random_documents(0, 200), "valid-00000": random_documents(1, 40)}
    shards = write_shard_set(directory / "shards", documents)
    write_teacher(directory / "teacher", shards / "tokenizer", **teacher)
    return directory


def write_teacher(directory: Path, tokenizer: Path, **changes: Any) -> Path:
    """A BERT of 4 layers x 32 whose weights are large enough for relations that are far from uniform."""
    torch.manual_seed(7)
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    config = BertConfig(vocab_size=VOCAB_SIZE, pad_token_id=SPECIALS["[PAD]"], **(sizes | changes))
    BertForMaskedLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return directory


def tiny_study(inputs: Path, **changes: Any) -> StudyRecipe:
    """The study on what `write_inputs` wrote; ``changes`` replace keys of its sections (``training={"...": ...}``)."""
    raw: dict[str, Any] = {
        "kind": "study",
        "name": "tiny",
        "data": {"shards": [{"path": str(inputs / "shards")}], "sequence_length": 16},
        "teacher": {"path": str(inputs / "teacher"), "precision": "fp32"},
        "student": {
            "hidden_size": 24, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_positions": 64,
        },
        "arms": ARMS,
        "budget": {"tokens": 20 * 8 * 16},
        "training": {
            "global_batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3, "precision": "fp32",
            "tensorboard": False, "log_every_steps": 1, "checkpoint_every_steps": 5,
        },
        "validation": {"at": [0.5, 1.0], "num_samples": 8, "probe_windows": 16},
    }  # fmt: skip
    for section, values in changes.items():
        raw[section] = raw[section] | values if isinstance(values, dict) and section in raw else values
    return StudyRecipe.model_validate(raw)
