"""Student and teacher: sizes, first weights, where a teacher comes from and what is kept of it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from kd_megatron.recipe.budget import Budget
from kd_megatron.recipe.config import Strict, given_or_trained
from kd_megatron.recipe.paths import PathText, Revision
from kd_megatron.recipe.policy import ACROSS, ALIKE, AT_RESUME, PLACE
from kd_megatron.recipe.types import Count, Fraction, Positive, Seed


class InitialiseRecipe(Strict):
    """Where the student's first weights come from."""

    method: Literal["random", "teacher_layers", "checkpoint"] = "random"
    # 1-based layers of the teacher or the checkpoint, one per student layer; None: evenly spread
    layers: list[Count] | None = None
    # checkpoint: an encoder in Hugging Face format, with or without MLM head, or a hub id
    path: Annotated[str | None, PLACE] = None
    revision: Annotated[Revision | None, PLACE] = None  # of a hub id, best a full commit

    @property
    def from_teacher(self) -> bool:
        """Whether they are layers of the teacher; without one they could not exist."""
        return self.method == "teacher_layers"


class EncoderRecipe(Strict):
    """A Hugging Face encoder by its size. The vocabulary size comes from the shards' tokenizer."""

    architecture: Literal["bert", "roberta"] = "bert"
    hidden_size: Annotated[Count, ACROSS]
    num_layers: Annotated[Count, ACROSS]
    num_attention_heads: Annotated[Count, ACROSS]
    intermediate_size: Annotated[Count, ACROSS]
    max_positions: Count = 512
    hidden_dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    initialise: InitialiseRecipe = InitialiseRecipe()
    initializer_range: Positive = 0.02  # standard deviation of random first weights; BERT's, made for a width of 768

    def problems(self) -> Iterator[str]:
        """Heads that do not divide the width."""
        if self.hidden_size % self.num_attention_heads:
            yield f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"


class TeacherTrainingRecipe(Strict):
    """Train the teacher first, by the scratch objective, on the study's own data; its cost enters the ledger."""

    encoder: EncoderRecipe
    budget: Budget
    seed: Seed = 0
    learning_rate: Positive | None = None  # None: the study's

    def problems(self) -> Iterator[str]:
        """A calibrated budget."""
        if self.budget.calibrate is not None:
            yield "calibrate belongs to the study's budget: there is one teacher, compared with nothing"


class TeacherCacheRecipe(Strict):
    """Keep what objectives need of the teacher, window by window, so that no window is put through it twice."""

    path: Annotated[PathText, PLACE]  # directory; students that share it share the teacher's work
    max_gib: Positive = 50.0  # of all that one run may store
    top_k: Count = 64  # logits kept of each masked position, for vanilla_kd
    num_students: Count = 1  # a window's teacher pass is charged to each run that uses it, divided by this number


class TeacherRecipe(Strict):
    """The frozen teacher: given (local directory or hub id, safetensors only) or trained first."""

    path: Annotated[str | None, PLACE] = None
    revision: Annotated[Revision | None, PLACE] = None  # of a hub id, best a full commit
    train: Annotated[TeacherTrainingRecipe | None, ALIKE] = None
    precision: Literal["auto", "bf16", "fp32", "fp8"] = "auto"  # fp8: matrix products of a bf16 teacher, on Hopper
    # each process holds a part of its weights, and gathers a layer's when it runs
    partition: Annotated[bool, AT_RESUME] = False
    cache: TeacherCacheRecipe | None = None
    cost_flops: Annotated[Positive | None, ACROSS] = None  # what its own training cost, when it is given
    cost_source: Annotated[str, ACROSS] = ""

    def problems(self) -> Iterator[str]:
        """As `given_or_trained`; parts in float8."""
        yield from given_or_trained(self, "path")
        if self.partition and self.precision == "fp8":
            yield (
                "partition does not go with precision 'fp8', whose weights ZeRO cannot partition; set precision to "
                "'bf16', or partition to false"
            )
