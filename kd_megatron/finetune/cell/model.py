"""The model to fine-tune: any Hugging Face encoder directory, with a classification head drawn from the seed alone."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_megatron.console import logs
from kd_megatron.errors import ModelError
from kd_megatron.finetune.cell.untrained import UntrainedTop

TOKEN_TYPES = "token_type_ids"
AS_IT_IS = UntrainedTop("keep")
_VOCABULARY_FILES = ("tokenizer.json", "vocab*", "*.model")  # one of them has the words
# These count their positions from padding_idx + 1, so that some of them are never used.
_POSITIONS_AFTER_PADDING = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_NO_DROPOUT = "set dropout to null, for all models of the comparison"
_CLASSIFIER = "ForSequenceClassification"  # in the name of a checkpoint's class: it has a head of its own task


def check_directory(path: Path) -> None:
    """Raise `ModelError` unless ``path`` holds a configuration, safetensors weights and a tokenizer."""
    if not (path / "config.json").is_file():
        raise ModelError(
            given=f"{path} is not a model directory: it has no config.json",
            expected="an encoder in Hugging Face format, such as RUN/export",
            fix="correct --model, or download the model with: hf download ID --local-dir DIRECTORY",
        )
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            given=f"{path} has no .safetensors file",
            expected="weights as safetensors (pickled weights are not read: they can run code)",
            fix="save the model with save_pretrained of a current transformers",
        )
    if not any(
        file.is_file() for pattern in _VOCABULARY_FILES for file in path.glob(pattern)
    ):  # without one the library makes a tokenizer that knows no word
        raise ModelError(
            given=f"{path} has no tokenizer: no file with its vocabulary",
            expected="the tokenizer's files beside the weights, such as tokenizer.json or vocab.txt",
            fix="save the tokenizer the model was trained with into the same directory",
        )


def load_tokenizer(path: Path, max_length: int) -> Any:
    """The model's tokenizer, after checking that it pads, and that its ids and ``max_length`` fit the model.

    It gives what the model takes: token types only to a model that has them, whatever class the tokenizer is of.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, tokenizers' bare Exception, strict configurations' own
        raise ModelError(given=f"{path} cannot be read: {error}", expected="an encoder and its tokenizer") from error
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            given=f"{path} is of the type {config.model_type!r}, which has no classifier in transformers",
            expected="an encoder such as bert, roberta, distilbert, deberta-v2, electra, mpnet or modernbert",
            fix="name a model of such a type",
        )
    classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    if TOKEN_TYPES not in inspect.signature(classifier.forward).parameters:
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != TOKEN_TYPES]
    if tokenizer.pad_token_id is None:
        raise ModelError(given=f"the tokenizer of {path} has no padding token", fix="give it one and save it again")
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            given=f"the tokenizer of {path} has {len(tokenizer)} tokens, the model {config.vocab_size}",
            expected="the tokenizer the model was trained with",
        )
    offset = config.pad_token_id + 1 if config.model_type in _POSITIONS_AFTER_PADDING else 0
    max_positions = getattr(config, "max_position_embeddings", max_length + offset) - offset
    if max_length > max_positions:
        raise ModelError(
            given=f"max_length {max_length}; {path} has {max_positions} positions",
            expected="a max_length within the model's positions",
            fix=f"set max_length={max_positions}",
        )
    return tokenizer


def load_classifier(
    path: Path,
    num_outputs: int,
    regression: bool,
    seed: int,
    dropout: float | None = None,
    top: UntrainedTop = AS_IT_IS,
) -> nn.Module:
    """The encoder in fp32 with a fresh head. Weights the checkpoint lacks depend on ``seed`` and their name alone.

    So does the head of a checkpoint that is a classifier already: it belongs to another task, or to another run.

    Args:
        seed: of the head, and of untrained weights that are drawn anew.
        dropout: of hidden states, attention and head; None: what the configuration says.
        top: the weights that pretraining never changed, and what is done with them.

    Raises:
        ModelError: the checkpoint lacks weights of the encoder itself, so that it is not the model its
            configuration describes; or dropout cannot be set, or layers not taken off.
    """
    problem = "regression" if regression else "single_label_classification"
    model, missing, has_head = _load(path, {"num_labels": num_outputs, "problem_type": problem}, dropout, top)
    encoder = f"{model.base_model_prefix}."
    lost = [name for name in missing if name.startswith(encoder) and ".pooler." not in name]
    if lost:
        raise ModelError(
            given=f"{path} lacks {len(lost)} weights of the encoder, such as {lost[0]}",
            expected="all weights that its config.json describes",
            fix="export or download the model again",
        )
    anew = [*top.names] if top.action == "reinitialise" else []
    if has_head:
        anew += [name for name, _ in model.named_parameters() if not name.startswith(encoder) and name not in missing]
    _draw(model, [*missing, *anew], seed, getattr(model.config, "initializer_range", 0.02))
    for name in anew:  # what is not drawn: norms start as the identity
        if (parameter := model.get_parameter(name)).ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return model


def _load(path: Path, changes: dict[str, Any], dropout: float | None, top: UntrainedTop) -> tuple[Any, list[str], bool]:
    """The classifier with what ``path`` has of its weights, the names of the others, and whether a head is of it."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logs.quiet_libraries()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **changes)
        has_head = any(_CLASSIFIER in name for name in config.architectures or [])
        if dropout is not None:
            set_dropout(config, dropout, path)
        if top.action == "drop" and top.names:
            config.num_hidden_layers = top.num_layers_left
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=has_head,  # of as many classes as its own task has
        )
        if dropout is not None:
            require_dropout(model, dropout, path)
    except ModelError:
        raise
    except Exception as error:  # safetensors, configuration and shape problems each have a type of their own
        raise ModelError(
            given=f"{path} cannot be loaded as a classifier: {error}",
            expected="an encoder whose weights fit its config.json",
            fix="export or download the model again",
        ) from error
    differing = {name for name, *_ in report["mismatched_keys"]}
    return model, sorted({*report["missing_keys"], *differing}), has_head


def _draw(model: nn.Module, names: list[str], seed: int, standard_deviation: float) -> None:
    """Draw the named weight matrices anew, each from a generator of its own: the library's draws depend on how many
    weights were missing before, which may differ between the arms of a study."""
    parameters = dict(model.named_parameters())
    for name in names:
        if name in parameters and parameters[name].ndim >= 2:
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            nn.init.normal_(parameters[name], std=standard_deviation, generator=generator)


def set_dropout(config: Any, dropout: float, path: Path) -> None:
    """Set every probability of dropout that ``config``, of the model in ``path``, has: hidden states, attention, head.

    Raises:
        ModelError: it has none.
    """
    names = [
        name for name, value in config.to_dict().items() if "dropout" in name and not isinstance(value, bool | str)
    ]
    if not names and dropout > 0:
        raise ModelError(
            given=f"dropout: {dropout:g}, but the configuration of {path} has no dropout",
            expected="a model that has it, or dropout: null",
            fix=_NO_DROPOUT,
        )
    for name in names:
        setattr(config, name, dropout)


def require_dropout(model: nn.Module, dropout: float, path: Path) -> None:
    """Hold ``model`` to what its configuration was told. Raises `ModelError` when it has another one somewhere."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p != dropout:
            raise ModelError(
                given=f"dropout: {dropout:g}, but {name} of {path} keeps {module.p:g}",
                expected="a model whose configuration decides all its dropout",
                fix=_NO_DROPOUT,
            )
