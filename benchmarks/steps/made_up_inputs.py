"""Data and teacher of a benchmark that needs neither a corpus nor training: speed depends on sizes, not on weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, PretrainedConfig

from kd_megatron.console import logs
from kd_megatron.data.loader import Loader
from kd_megatron.files.manifest import MANIFEST
from kd_megatron.models.build import student_config
from kd_megatron.ranks import dist
from kd_megatron.recipe import EncoderRecipe, ShardsRecipe, StudyRecipe
from kd_megatron.study.prerequisites import prepare_inputs
from kd_megatron.training.setup import special_ids

MADE_UP = "made_up"  # the path of a shard set that the benchmark writes itself
MADE_UP_TOKENS = 4_000_000


@contextmanager
def inputs(recipe: StudyRecipe, runs: Path) -> Iterator[tuple[StudyRecipe, str | None]]:
    """The recipe with shards that are there, and the path of its teacher; what was made up is removed in the end.

    Shards named `MADE_UP` are written, unless there is a directory of that name; a corpus is prepared where it is not
    yet; a teacher that the recipe would train gets random weights instead. Collective.

    Args:
        runs: where a run of the recipe would keep what it prepares.
    """
    with tempfile.TemporaryDirectory() as own:
        directory = Path(dist.from_main(own))
        recipe = _with_shards(recipe, directory)
        if recipe.data.corpus:
            prepare_inputs(recipe.model_copy(update={"teacher": None}), runs)
        teacher = recipe.teacher
        path = teacher.path if teacher else None
        if teacher and teacher.train:
            path = str(directory / "teacher")
            if dist.is_main():
                write_random_teacher(teacher.train.encoder, Loader(recipe.data, recipe.seeds[0]), Path(path))
            dist.barrier()
            logs.say("the teacher has random weights: they change no speed")
        yield recipe, path
        dist.barrier()


def _with_shards(recipe: StudyRecipe, directory: Path) -> StudyRecipe:
    if [shards.path for shards in recipe.data.shards] != [MADE_UP] or (Path(MADE_UP) / MANIFEST).exists():
        return recipe
    path = directory / MADE_UP
    if dist.is_main():
        from benchmarks.data.made_up import write_made_up

        write_made_up(path, MADE_UP_TOKENS, valid_tokens=64 * recipe.data.sequence_length)
    dist.barrier()
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": [ShardsRecipe(path=str(path))]})})


def write_random_teacher(encoder: EncoderRecipe, loader: Loader, directory: Path) -> None:
    """A masked-language model of these sizes with random weights and the shards' tokenizer, in Hugging Face format."""
    write_random_model(
        student_config(encoder, loader.vocab_size, special_ids(loader)), loader.tokenizer_path, directory
    )


def write_random_model(config: PretrainedConfig, tokenizer: Path, directory: Path) -> None:
    """The same of a model's config, with a copy of ``tokenizer``."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).save_pretrained(directory)
