"""A finished student as a Hugging Face directory: safetensors, tokenizer, a card, and what stayed untrained."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import atomic

FACTS = "kd_megatron.json"
LOADED_OFFLINE = "local_files_only"  # what transformers writes of how it found a tokenizer


def export(
    model: PreTrainedModel, weights: dict[str, Tensor], tokenizer_path: Path, directory: Path, facts: dict[str, Any]
) -> None:
    """Write ``model`` with ``weights`` (float32, by parameter name) to ``directory``, all or nothing.

    Args:
        facts: goes to ``kd_megatron.json`` and the card; has ``untrained_parameters``, a list of names.
    """
    # A fresh model of the same class: the training one may be partitioned, bf16 and wired to our attention function.
    config = type(model.config).from_dict(model.config.to_dict())
    plain = type(model)._from_config(config)
    plain.load_state_dict(weights, strict=False)
    missing = {name for name, _ in plain.named_parameters()} - set(weights)
    if missing:
        raise ValueError(f"export lacks weights: {sorted(missing)}")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=False)
    if LOADED_OFFLINE in tokenizer.init_kwargs:  # true where the hub is switched off, and part of the hash
        tokenizer.init_kwargs[LOADED_OFFLINE] = False
    with disk_full_is_clear(directory), atomic.new_directory(directory) as aside:
        plain.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(card(facts), encoding="utf-8")


def card(facts: dict[str, Any]) -> str:
    """The model card."""
    untrained = facts["untrained_parameters"]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "---",
        f"# {facts['name']}",
        "",
        f"Trained by kd_megatron: objective {facts.get('objective_in_words', facts['objective'])}, seed "
        f"{facts['seed']}, {facts['tokens']:,} tokens, {facts['flops']:.3e} charged FLOPs, budget {facts['budget']}.",
        "",
        f"Data: {facts['data']}.",
        "",
    ]
    if untrained:
        lines += [
            f"**{len(untrained)} parameter tensors were never trained**, because the objective gives them no gradient; "
            "they hold their initial values. Predictions of the masked-language-model head are then meaningless, and "
            "fine-tuning starts these parameters from there:",
            "",
            *(f"- `{name}`" for name in untrained),
            "",
        ]
    return "\n".join(lines)
