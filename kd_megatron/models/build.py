"""Students from a recipe's sizes, teachers from a directory or hub id, and whether the two and the shards fit."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from kd_megatron.errors import ModelError
from kd_megatron.files import hub
from kd_megatron.files.manifest import vocabulary_hash
from kd_megatron.models.taps import DEFAULT, HEADS, Execution, TappedEncoder
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.recipe.paths import expand
from kd_megatron.tensors import ModelShape, Needs

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}  # fp8: all but the matrix products
BERT_VOCABULARY = 30_522
# Sizes of well-known public encoders, so that a study can be planned without asking the hub. Training reads the real
# config. Source: the ``config.json`` of each model on the hub.
KNOWN = {  # hidden size, layers, attention heads, feed-forward size
    "google-bert/bert-base-uncased": (768, 12, 12, 3072),
    "google-bert/bert-large-uncased": (1024, 24, 16, 4096),
}


def student_config(
    recipe: EncoderRecipe, vocab_size: int, special_ids: dict[str, int] | None = None
) -> PretrainedConfig:
    """The Hugging Face config of a student; ``special_ids`` are such as ``{"pad_token_id": 0}``."""
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_attention_heads,
        "intermediate_size": recipe.intermediate_size,
        "hidden_dropout_prob": recipe.hidden_dropout,
        "initializer_range": recipe.initializer_range,
        "attention_probs_dropout_prob": recipe.attention_dropout,
        **(special_ids or {}),
    }
    if recipe.architecture == "roberta":
        # RoBERTa counts positions from pad_token_id + 1.
        offset = shared.get("pad_token_id", 1) + 1
        return RobertaConfig(max_position_embeddings=recipe.max_positions + offset, type_vocab_size=1, **shared)
    return BertConfig(max_position_embeddings=recipe.max_positions, **shared)


def build_student(recipe: EncoderRecipe, vocab_size: int, special_ids: dict[str, int], seed: int) -> PreTrainedModel:
    """A student with random weights that depend on ``seed`` alone, float32 (docs/fairness.md: the same in all arms)."""
    torch.manual_seed(seed)
    config = student_config(recipe, vocab_size, special_ids)
    return AutoModelForMaskedLM.from_config(config)


def load_model(path: str, dtype: torch.dtype, needs_head: bool) -> PreTrainedModel:
    """A pretrained masked-language model: safetensors only, no remote code.

    Raises:
        ModelError: ``path`` cannot be read, has no safetensors, or lacks the MLM head while ``needs_head``.
    """
    model, missing = load_with_missing(path, dtype)
    if needs_head and missing:
        raise ModelError(
            given=f"model {path!r} has no masked-language-modelling head (missing: {', '.join(missing[:3])})",
            expected="a model with an MLM head, which vanilla_kd distils from",
            fix="use a teacher saved as ...ForMaskedLM, or a relation objective (minilm, tinybert)",
        )
    return model


def load_with_missing(path: str, dtype: torch.dtype) -> tuple[PreTrainedModel, list[str]]:
    """`load_model` and the weights of the MLM head that it has not got; they are then random.

    Raises:
        ModelError: ``path`` cannot be read, has no safetensors, or lacks weights of its encoder.
    """
    _check_local(path)
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise _out_of_reach(f"model {path!r} cannot be loaded", error) from error
    head = HEADS.get(model.config.model_type, "")
    missing = sorted(key for key in info["missing_keys"] if key.startswith(head + "."))
    body = sorted(key for key in set(info["missing_keys"]) - set(missing) if "pooler" not in key)
    if body:
        raise ModelError(
            given=f"model {path!r} lacks weights of its encoder: {', '.join(body[:3])} ({len(body)} in all)",
            expected="a complete encoder",
            fix="save the model again, or use another",
        )
    return model, missing


def _out_of_reach(problem: str, error: BaseException) -> ModelError:
    return ModelError(
        given=f"{problem}: {_first_line(error)}",
        expected="a local directory in Hugging Face format, or a hub id that can be reached",
        fix="check the path; without network, download the model first and give its directory",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_local(path: str) -> None:
    """Clear errors for what goes wrong most often with a local directory."""
    directory = Path(path)
    if not hub.is_local(path):
        return
    if not (directory / "config.json").is_file():
        raise ModelError(
            given=f"{path} is not a model directory: it has no config.json",
            expected="a directory in Hugging Face format (config.json, model.safetensors, tokenizer files)",
            fix="correct the path",
        )
    if not list(directory.glob("*.safetensors")):
        others = sorted(p.name for p in directory.glob("*.bin"))
        raise ModelError(
            given=f"{path} has no safetensors weights" + (f" (it has {', '.join(others)})" if others else ""),
            expected="model.safetensors; pickled weights can run code and are never loaded",
            fix="convert it: AutoModelForMaskedLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
        )


def model_config(path: str) -> PretrainedConfig:
    """The config of a pretrained model, without its weights. Raises `ModelError` when it cannot be read."""
    if not (Path(path) / "config.json").is_file():
        _check_local(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _out_of_reach(f"the config of model {path!r} cannot be read", error) from error


def load_teacher(
    path: str, dtype: torch.dtype, needs: Needs, device: torch.device, execution: Execution = DEFAULT
) -> TappedEncoder:
    """A frozen teacher in eval mode that runs only as far up as ``needs`` asks (FACTS: the study left dropout on)."""
    model = load_model(path, dtype, needs.head)
    drop_what_is_not_needed(model, needs)
    teacher = TappedEncoder(model, needs, execution=execution)
    return teacher.to(device).eval().requires_grad_(False)


def drop_what_is_not_needed(model: PreTrainedModel, needs: Needs) -> None:
    """Keep the layers up to the highest one needed; a head needs them all."""
    if not needs.head:
        encoder: Any = model.base_model.encoder
        highest = max((*needs.attention_layers, *needs.hidden), default=0)
        encoder.layer = encoder.layer[:highest]
        model.config.num_hidden_layers = highest


def shape_of(config: PretrainedConfig) -> ModelShape:
    """What objectives may know of a model with this config."""
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        vocab_size=config.vocab_size,
    )


def check_same_vocabulary(path: str, expected_hash: str, shards: str) -> None:
    """Raise `ModelError` unless the tokenizer of the model at ``path`` has the shards' vocabulary, id for id."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            given=f"the tokenizer of model {path!r} cannot be read: {_first_line(error)}",
            expected="tokenizer files beside the weights",
            fix="save the model's tokenizer into its directory",
        ) from error
    if vocabulary_hash(tokenizer.get_vocab()) != expected_hash:
        raise ModelError(
            given=f"model {path!r} ({len(tokenizer)} tokens) and the shards {shards} have different vocabularies",
            expected="the same tokens with the same ids: their logits and embeddings are compared by id",
            fix="prepare the shards with the model's tokenizer (tokenizer.load in the corpus recipe)",
        )


def config_or_known(path: str, revision: str | None = None) -> PretrainedConfig:
    """The config of the model at ``path``; from `KNOWN` where it is there. Raises `ModelError` otherwise."""
    if path not in KNOWN:
        return model_config(
            hub.local_directory(path, revision, "teacher", ("config.json",)) if revision else expand(path)
        )
    hidden_size, num_layers, num_heads, inner_size = KNOWN[path]
    return BertConfig(
        vocab_size=BERT_VOCABULARY,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=inner_size,
    )
