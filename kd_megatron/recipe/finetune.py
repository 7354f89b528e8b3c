"""The separate stage: tasks, grid, and one optimiser recipe for all models."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.paths import PathPart, Revision
from kd_megatron.recipe.policy import COUNTS, NO_SCORE, PLACE, RULE, WHICH_CELLS
from kd_megatron.recipe.presets import STUDY, fill_in
from kd_megatron.recipe.types import Count, Fraction, Positive, Precision, Seed

BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]


class TaskRecipe(Strict):
    """A GLUE task by name, or own data: files, or splits of a data set of the Hugging Face hub."""

    name: PathPart
    train: str | None = None  # .tsv, .csv, .jsonl or .parquet; with 'dataset' its split ('train'); or 'embedded'
    dev: str | None = None  # with 'dataset': its split ('validation')
    test: str | None = None  # rows without labels, only predicted
    dataset: str | None = None  # an id of the hub, or a directory in a layout that its library reads
    subset: str | None = None  # of the data set: what the hub calls its configuration
    revision: Revision | None = None  # the data set's commit; None: its newest, with a warning
    text: str | list[str] = "text"  # column, or two columns for pairs
    label: str = "label"
    type: Literal["classification", "regression"] = "classification"
    metric: str | None = None  # None: GLUE's metric for the task, accuracy otherwise
    max_train_examples: Count | None = None  # a fixed random subset, stated in every table
    max_dev_examples: Count | None = None

    @property
    def is_glue(self) -> bool:
        """Whether the name is all there is: a task of GLUE, whose files and columns are known."""
        return self.train is None and self.dataset is None

    @property
    def is_embedded(self) -> bool:
        """Whether it is one of the tasks that are made from the installed packages."""
        return self.train == "embedded" and self.dataset is None

    def problems(self) -> Iterator[str]:
        """Keys of a data set, or of own data, where there is none."""
        lone = [key for key in ("subset", "revision") if getattr(self, key) is not None and self.dataset is None]
        if lone:
            yield f"{' and '.join(lone)} belong to 'dataset', which is not given"
        fields = type(self).model_fields
        own = [key for key in ("dev", "test", "text", "label", "type") if getattr(self, key) != fields[key].default]
        if self.is_glue and own:
            yield f"{', '.join(own)}: of own data, which needs 'train' or 'dataset' too"
        if self.is_embedded and own:
            yield f"{', '.join(own)}: of own data, but an embedded task brings all of its own"


class GridRecipe(Strict):
    """Every learning rate x batch size is one setting; the best one is the score, and the report says so."""

    learning_rates: Annotated[list[Positive], Field(min_length=1)] = STUDY["grid"]["learning_rates"]
    batch_sizes: Annotated[list[Count], Field(min_length=1)] = STUDY["grid"]["batch_sizes"]

    @property
    def num_settings(self) -> int:
        """Different settings: a value given twice is one."""
        return len(set(self.learning_rates)) * len(set(self.batch_sizes))


class SelectionRecipe(Strict):
    """The rows on which the best setting is chosen."""

    on: Literal["dev", "train_slice"] = "dev"  # dev: the rows the score is read from; train_slice: rows not trained on
    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1  # of the training rows, taken away from them


class InclusionRecipe(Strict):
    """Which tasks a study's average is over: those that tell students apart, and whose fine-tuning works."""

    above_majority: Fraction = 0.05  # by how much some arm's mean is above the majority class, at least
    most_collapsed: Fraction = 0.10  # of all students' fine-tunings with the best setting, at most


class FinetuneRecipe(Strict):
    """The separate stage. Stand-alone (``glue.yaml``) or as the section ``finetune`` of a study.

    Defaults are those of the preset ``study``; another preset fills in what the recipe does not give itself.
    """

    kind: Annotated[Literal["finetune"], NO_SCORE] = "finetune"
    tasks: Annotated[list[TaskRecipe], Field(min_length=1), PLACE]
    glue_path: Annotated[str | None, PLACE] = None  # directory with TASK/train.tsv; None: nyu-mll/glue from the hub
    glue_revision: Annotated[Revision | None, PLACE] = None  # of nyu-mll/glue; None: that in finetune/tasks/glue.py
    preset: Annotated[Literal["study", "sane", "small_data"] | None, NO_SCORE] = None  # kd_megatron/recipe/presets.py
    grid: Annotated[GridRecipe, WHICH_CELLS] = GridRecipe()
    seeds: Annotated[list[Seed], Field(min_length=1), WHICH_CELLS] = [0]
    # draw from the listed seeds themselves, so that all students share their noise: a study gives no verdict on scores
    crossed_seeds: Annotated[bool, WHICH_CELLS] = False
    inclusion: Annotated[InclusionRecipe, RULE] = InclusionRecipe()  # of a study's average
    halving: Annotated[bool, WHICH_CELLS] = False  # after each seed, the worse half of a task's settings is given up
    selection: Annotated[SelectionRecipe, WHICH_CELLS] = SelectionRecipe()
    epochs: Annotated[Positive, COUNTS] = STUDY["epochs"]
    min_steps: Annotated[Count | None, COUNTS] = STUDY["min_steps"]  # of a cell at least; None: what its epochs have
    max_length: Annotated[Count, COUNTS] = STUDY["max_length"]
    schedule: Annotated[Literal["polynomial", "cosine", "constant"], COUNTS] = STUDY["schedule"]  # after the warm-up
    decay_power: Annotated[Positive, COUNTS] = STUDY["decay_power"]  # of the polynomial schedule; 1: linear
    warmup_fraction: Annotated[Fraction, COUNTS] = STUDY["warmup_fraction"]
    weight_decay: Annotated[float, Field(ge=0.0), COUNTS] = STUDY["weight_decay"]
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2), COUNTS] = STUDY["betas"]
    epsilon: Annotated[Positive, COUNTS] = STUDY["epsilon"]
    gradient_clipping: Annotated[Positive | None, COUNTS] = STUDY["gradient_clipping"]  # norm; None: unclipped
    dropout: Annotated[BelowOne | None, COUNTS] = STUDY["dropout"]  # None: what the model's config says
    # what the model's card says was never trained
    untrained_top: Annotated[Literal["keep", "drop", "reinitialise"], COUNTS] = "keep"
    evaluate_every_epochs: Annotated[Positive | None, COUNTS] = None  # dev metrics on the way; None: at the end alone
    precision: Annotated[Precision, COUNTS] = "auto"
    save_predictions: Annotated[bool, NO_SCORE] = True
    tensorboard: Annotated[bool, NO_SCORE] = True

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, raw: Any) -> Any:
        return fill_in(raw) if isinstance(raw, dict) else raw

    def problems(self) -> Iterator[str]:
        """Two sources of GLUE; seeds or tasks that are given twice."""
        if self.glue_path is not None and self.glue_revision is not None:
            yield "glue_revision is of the hub's copy, and glue_path names a local one: give one of them"
        lists: dict[str, list[Any]] = {"seeds": self.seeds, "tasks": [task.name for task in self.tasks]}
        for what, values in lists.items():
            repeated = sorted({value for value in values if values.count(value) > 1}, key=str)
            if repeated:
                yield f"{what} are given twice: {repeated}"
