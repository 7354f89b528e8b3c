"""Compiles one layer of student and teacher, forward and backward, at a study's sizes: the trial of `compiling`.

``python -m kd_megatron.engine.compile_trial`` reads ``{"recipe": ..., "batch_size": B}`` as JSON from its input. What
it compiles stays in the compiler's cache on the disk, where the runs find it.

Shapes: B batch, L length, K masked positions.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, PretrainedConfig

from kd_megatron.data.masking import num_masked
from kd_megatron.machine import compiler
from kd_megatron.models.build import DTYPES, build_student, model_config
from kd_megatron.models.taps import Execution, TappedEncoder
from kd_megatron.recipe import EncoderRecipe, StudyRecipe, config
from kd_megatron.tensors import Batch, Needs

VOCABULARY = 1000
NEEDS = Needs(hidden=(1,), logits=True)


def main() -> int:
    """Compile and run both; an error ends the process with its message last."""
    order = json.load(sys.stdin)
    recipe = config.validate(StudyRecipe, order["recipe"], where="the recipe of a trial")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiler.allow_all_kinds_of_layers()
    batch = _batch(recipe, order["batch_size"]).to(device)
    execution = Execution(recipe.training.attention, True, recipe.training.activation_checkpointing)
    student = _one_layer(recipe.student, execution).to(device, DTYPES[recipe.training.precision]).train()
    taps = student(batch)
    assert taps.logits is not None
    (taps.hidden[1].float().sum() + taps.logits.states.float().sum()).backward()
    if recipe.teacher is not None and (encoder := _teacher(recipe)) is not None:
        dtype = torch.float32 if recipe.teacher.precision == "fp32" else torch.bfloat16
        teacher = _one_layer(encoder, Execution(recipe.training.attention, True)).to(device, dtype)
        with torch.no_grad():
            teacher.eval().requires_grad_(False)(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 0


def _teacher(recipe: StudyRecipe) -> EncoderRecipe | PretrainedConfig | None:
    """What the teacher is built like; None where that is not known yet without a network."""
    assert recipe.teacher is not None
    if recipe.teacher.train is not None:
        return recipe.teacher.train.encoder
    path = recipe.teacher.path
    return model_config(path) if path and (Path(path) / "config.json").is_file() else None


def _one_layer(of: EncoderRecipe | PretrainedConfig, execution: Execution) -> TappedEncoder:
    if isinstance(of, EncoderRecipe):
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model = build_student(of.model_copy(update={"num_layers": 1}), VOCABULARY, ids, 0)
    else:
        of.num_hidden_layers, of.vocab_size = 1, VOCABULARY
        model = AutoModelForMaskedLM.from_config(of)
    return TappedEncoder(model, NEEDS, execution=execution)


def _batch(recipe: StudyRecipe, size: int) -> Batch:
    length = recipe.data.sequence_length
    ids = torch.randint(5, VOCABULARY, (size, length))
    slots = torch.arange(num_masked(recipe.data.mask_fraction, length)).expand(size, -1).contiguous()
    return Batch(ids, ids, None, slots, slots, torch.arange(size))


if __name__ == "__main__":
    sys.exit(main())
