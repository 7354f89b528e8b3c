"""First weights of a student other than random ones: from layers of the teacher, or of another model.

Teacher layers come with embeddings and MLM head, as in DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 3).
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kd_megatron.errors import ModelError
from kd_megatron.files import hub
from kd_megatron.models.build import load_with_missing
from kd_megatron.models.taps import HEADS
from kd_megatron.recipe import InitialiseRecipe


def initialise(student: PreTrainedModel, recipe: InitialiseRecipe, teacher_path: str | None) -> str | None:
    """Overwrite the student's random weights in place, as ``recipe`` says. Alike in all arms of a study.

    Layers come with the embeddings, and with the MLM head where the source has one; where it has none (a sentence
    encoder, say), the head keeps the random weights that the student's seed gave it.

    Returns:
        The local directory of the checkpoint, for what is recorded; None when weights are random or the teacher's.

    Raises:
        ModelError: there is no source, or it does not fit.
    """
    if recipe.method == "random":
        return None
    begins_from = checkpoint_path(recipe)
    path = teacher_path if recipe.from_teacher else begins_from
    if path is None:
        raise ModelError(given="student.initialise.method is 'teacher_layers' without a teacher", fix="add one")
    source, missing = load_with_missing(path, torch.float32)
    _copy(student, source, not missing, recipe.layers, f"{recipe.method.removesuffix('_layers')} {path!r}")
    return begins_from


def checkpoint_path(recipe: InitialiseRecipe) -> str | None:
    """The local directory of the model that a student begins from when it is not the teacher. Collective for a hub id.

    Raises:
        ModelError: it is not named, or cannot be had.
    """
    if recipe.method != "checkpoint":
        return None
    if recipe.path is None:
        raise ModelError(given="student.initialise.method is 'checkpoint' without a path", fix="add its path")
    return hub.directory_on_all_ranks(recipe.path, recipe.revision, "student.initialise")


def uniform_layers(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """Evenly spread 1-based teacher layers, the last one included: 3 of 12 -> [4, 8, 12]."""
    return [round((i + 1) * num_teacher_layers / num_student_layers) for i in range(num_student_layers)]


def _copy(student: PreTrainedModel, source: PreTrainedModel, head: bool, layers: list[int] | None, name: str) -> None:
    num_own, num_layers = student.config.num_hidden_layers, source.config.num_hidden_layers
    layers = layers or uniform_layers(num_own, num_layers)
    if len(layers) != num_own or not all(1 <= layer <= num_layers for layer in layers):
        raise ModelError(
            given=f"student.initialise.layers {layers}",
            expected=f"{num_own} layers between 1 and {num_layers}, which {name} has",
            fix="name one layer for each student layer",
        )
    own, others = _structure(student), _structure(source)
    differing = [f"{key} {value}, there {others[key]}" for key, value in own.items() if value != others[key]]
    if differing:
        raise ModelError(
            given=f"{name} does not fit the student: {'; '.join(differing)}",
            expected="the same architecture, width and embeddings, to copy layers",
            fix="make the student's sizes those of the model it begins from, or use initialise.method: random",
        )
    target: Any = student.base_model
    origin: Any = source.base_model
    target.embeddings.load_state_dict(origin.embeddings.state_dict())
    for layer, number in zip(target.encoder.layer, layers, strict=True):
        layer.load_state_dict(origin.encoder.layer[number - 1].state_dict())
    if head:
        attribute = HEADS[student.config.model_type]
        getattr(student, attribute).load_state_dict(getattr(source, attribute).state_dict())
    student.config.layer_norm_eps = source.config.layer_norm_eps  # what was copied computes what it computed there
    for norm in (module for module in student.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = source.config.layer_norm_eps


def _structure(model: PreTrainedModel) -> dict[str, Any]:
    """What must be alike, under the names of a config."""
    keys = (
        "model_type", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings", "type_vocab_size", "hidden_act",
    )  # fmt: skip
    return {key: getattr(model.config, key) for key in keys}
