"""What a recipe may say. Three kinds: `CorpusRecipe`, `StudyRecipe` (a run is a study with one arm), `FinetuneRecipe`.

All paths are relative to the directory the command runs from (`launch.sh` runs from the repository's root).
The options of an objective belong to that objective (`kd_megatron/objectives/`), not to this file.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kd_megatron.config import BUDGET_UNITS, TIME_UNITS, Strict
from kd_megatron.finetune_presets import STUDY, fill_in
from kd_megatron.paths import PathPart, PathText, Revision

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(gt=0, le=10**15)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's and torch's generators take
Precision = Literal["auto", "bf16", "fp32"]  # auto: bf16 where the hardware multiplies it, fp32 elsewhere


# --- corpus -----------------------------------------------------------------------------------------------


class SourceRecipe(Strict):
    """One source of documents."""

    type: Literal["installed_docs", "files", "huggingface"]
    paths: list[str] = []  # files: files, directories or globs
    text_key: str = "text"  # the field of a .jsonl/.parquet row or of a hub data set that holds the text
    packages: list[str] | None = None  # installed_docs: only these; None takes all that are installed
    dataset: str | None = None  # huggingface: the data set's id
    revision: Revision | None = None  # huggingface: the data set's commit; None: its newest, with a warning
    subset: str | None = None
    split: str = "train"
    max_documents: Count | None = None
    licence: str = "not stated"  # copied to the manifest

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "files" and not self.paths:
            raise ValueError("a source of type 'files' needs 'paths'")
        if self.type == "huggingface" and not self.dataset:
            raise ValueError("a source of type 'huggingface' needs 'dataset'")
        return self


class CleanRecipe(Strict):
    """Which documents are kept, after unicode normalisation (NFKC) and white-space clean-up."""

    min_characters: Annotated[int, Field(ge=0)] = 200
    max_characters: Count = 1_000_000
    min_letter_fraction: Fraction = 0.6  # letters among the characters that are not white space
    min_english_fraction: Fraction = 0.05  # of words that are among the commonest English ones; 0 switches it off
    deduplicate: bool = True  # exact, by document hash


class TrainTokenizerRecipe(Strict):
    """Train a WordPiece vocabulary on the corpus itself."""

    vocab_size: Count = 30_522
    lowercase: bool = True
    max_documents: Count = 100_000


class TokenizerRecipe(Strict):
    """Either load a tokenizer (local directory, vocab.txt or hub id) or train one."""

    load: str | None = None
    revision: Revision | None = None  # of a hub id, best a full commit
    train: TrainTokenizerRecipe | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.load is None) == (self.train is None):
            raise ValueError("give exactly one of 'load' and 'train'")
        if self.train is not None and self.revision is not None:
            raise ValueError("'revision' belongs to 'load'")
        return self


class CorpusRecipe(Strict):
    """A corpus to prepare: sources -> clean -> tokenizer -> shards."""

    kind: Literal["corpus"]
    name: PathPart
    output: PathText  # directory of the shard set, anywhere
    sources: Annotated[list[SourceRecipe], Field(min_length=1)]
    clean: CleanRecipe = CleanRecipe()
    tokenizer: TokenizerRecipe
    valid_fraction: Fraction = 0.01  # of documents, chosen by their hash
    num_shards: Count = 8
    num_workers: Count | None = None  # None: one per core
    description: str = ""


# --- study ------------------------------------------------------------------------------------------------


class ShardsRecipe(Strict):
    """One prepared shard set and its share of the samples."""

    path: PathText
    weight: Positive = 1.0


class DataRecipe(Strict):
    """What the students read."""

    shards: Annotated[list[ShardsRecipe], Field(min_length=1)]
    corpus: str | None = None  # corpus recipe: `study` and `pretrain` prepare it when the shards are not there
    sequence_length: Annotated[int, Field(ge=8)] = 128
    unique_tokens: Count | None = None  # cap on the pool; subsets are nested; epochs repeat it
    mask_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.15
    seed: Seed = 1234  # of the pool's nesting; order and masks follow the run's own seed
    mask_seed: Seed | None = None  # given: a window keeps one mask, in all epochs and runs; a teacher cache needs it


class InitialiseRecipe(Strict):
    """Where the student's first weights come from."""

    method: Literal["random", "teacher_layers", "checkpoint"] = "random"
    layers: list[Count] | None = None  # teacher_layers: 1-based teacher layers, one per student layer; None: uniform
    path: str | None = None  # checkpoint: a directory in Hugging Face format, or a hub id
    revision: Revision | None = None  # of a hub id, best a full commit


class EncoderRecipe(Strict):
    """A Hugging Face encoder by its size. The vocabulary size comes from the shards' tokenizer."""

    architecture: Literal["bert", "roberta"] = "bert"
    hidden_size: Count
    num_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    max_positions: Count = 512
    hidden_dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    initialise: InitialiseRecipe = InitialiseRecipe()

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


def _not_a_bare_number(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError(f"a budget needs a unit: write budget.UNIT, UNIT one of {', '.join(BUDGET_UNITS)}")
    return value


Account = Literal[
    "student", "teacher", "loss", "data_wait", "validation", "checkpoint", "set_up", "teacher_for_others"
]  # the last: filling a teacher cache, beyond this run's own share of it
TRAINING_ACCOUNTS: set[Account] = {"student", "teacher", "loss", "data_wait"}  # of a step


class CalibrateRecipe(Strict):
    """Measure every arm's speed before training, in turn on the machine at hand, and fix its steps by it."""

    rounds: Annotated[int, Field(ge=2, le=10_000)] = 5  # every arm has its turn in each
    steps: Count = 4  # training steps of an arm's turn


class CalibratedSteps(Strict):
    """What a calibration made of a budget in time for one run. Written by `study`, never by hand."""

    steps: Count
    tokens_per_second: Positive  # the median that they were computed with


class BudgetRecipe(Strict):
    """What ends a run (exactly one unit) and which accounts of the ledger count towards it."""

    hours: Positive | None = None
    gpu_hours: Positive | None = None
    flops: Positive | None = None
    tokens: Positive | None = None
    charge: list[Account] = ["student", "teacher", "loss", "data_wait"]
    calibrate: CalibrateRecipe | None = None  # of a study's budget in time: noise does not choose the winner
    calibrated: CalibratedSteps | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(f"a budget has exactly one unit of {', '.join(BUDGET_UNITS)}; given: {given or 'none'}")
        return self

    @model_validator(mode="after")
    def _flops_are_counted_where_they_are_charged(self) -> Self:
        if self.unit == "flops" and (uncounted := sorted(set(self.charge) - TRAINING_ACCOUNTS)):
            raise ValueError(
                f"FLOPs are counted in training steps alone, {', '.join(uncounted)} would be charged none: leave it "
                "out of charge, or give the budget in hours"
            )
        return self

    @model_validator(mode="after")
    def _calibration_measures_what_is_charged(self) -> Self:
        if self.calibrate is None:
            return self
        if not self.is_time:
            raise ValueError(f"calibrate is for budgets in hours or gpu_hours; {self.unit} are counted, not measured")
        if unmeasured := sorted(set(self.charge) - TRAINING_ACCOUNTS):
            raise ValueError(f"calibrate times training steps alone, but {', '.join(unmeasured)} is charged as well")
        return self

    @property
    def is_time(self) -> bool:
        """Whether a clock measures it."""
        return self.unit in TIME_UNITS

    @property
    def unit(self) -> str:
        """``"hours"``, ``"gpu_hours"``, ``"flops"`` or ``"tokens"``."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    @property
    def splits_training_time(self) -> bool:
        """Whether it is time and some accounts of a training step count while others do not."""
        return self.is_time and len(TRAINING_ACCOUNTS & set(self.charge)) in (1, 2, 3)

    @property
    def limit(self) -> float:
        """The amount, in `unit`."""
        return float(getattr(self, self.unit))


Budget = Annotated[BudgetRecipe, BeforeValidator(_not_a_bare_number)]


class TrainingRecipe(Strict):
    """Optimisation and bookkeeping of pretraining, the same for all arms."""

    global_batch_size: Count = 256  # sequences per optimizer step
    micro_batch_size: Count = 32  # sequences per forward pass and process
    learning_rate: Positive = 1e-3  # peak
    warmup_fraction: Fraction = 0.06  # of the budget
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01  # not on biases and layer norms
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Positive = 1e-6
    gradient_clipping: Annotated[float, Field(ge=0.0)] = 1.0  # global norm; 0 is off
    precision: Precision = "auto"
    stop_at_last_tap: bool = True  # the student computes nothing above what its objective reads, in training
    attention: Literal["sdpa", "flash"] = "sdpa"  # of student and teacher; flash: the optional package flash-attn
    compile: bool = False  # student and teacher by torch.compile: minutes at the start of each run
    activation_checkpointing: bool = False  # keep a student layer's input alone and run it again in the backward pass
    ds_config: PathPart = "zero0"  # a file of ds_configs/
    log_every_steps: Count = 10
    checkpoint_every_steps: Count = 200
    keep_checkpoints: Count = 2  # the newest ones; those below are kept beside them, for good
    keep_every_steps: Count | None = None  # a checkpoint at each multiple of this
    keep_at: list[Fraction] = []  # fractions of the budget: a checkpoint at the first step at or after each
    tensorboard: bool = True


class TeacherTrainingRecipe(Strict):
    """Train the teacher first, by the scratch objective, on the study's own data; its cost enters the ledger."""

    encoder: EncoderRecipe
    budget: Budget
    seed: Seed = 0
    learning_rate: Positive | None = None  # None: the study's

    @model_validator(mode="after")
    def _is_not_calibrated(self) -> Self:
        if self.budget.calibrate is not None:
            raise ValueError("calibrate belongs to the study's budget: there is one teacher, compared with nothing")
        return self


class TeacherCacheRecipe(Strict):
    """Keep what objectives need of the teacher, window by window, so that no window is put through it twice."""

    path: PathText  # directory; students that share it share the teacher's work
    max_gib: Positive = 50.0  # of all that one run may store
    top_k: Count = 64  # logits kept of each masked position, for vanilla_kd
    num_students: Count = 1  # a window's teacher pass is charged to each run that uses it, divided by this number


class TeacherRecipe(Strict):
    """The frozen teacher: given (local directory or hub id, safetensors only) or trained first."""

    path: str | None = None
    revision: Revision | None = None  # of a hub id, best a full commit
    train: TeacherTrainingRecipe | None = None
    precision: Literal["auto", "bf16", "fp32", "fp8"] = "auto"  # fp8: matrix products of a bf16 teacher, on Hopper
    partition: bool = False  # each process holds a part of its weights, and gathers a layer's when it runs
    cache: TeacherCacheRecipe | None = None
    cost_flops: Positive | None = None  # what its own training cost, when it is given
    cost_source: str = ""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise ValueError("give exactly one of 'path' and 'train'")
        if self.train is not None and self.revision is not None:
            raise ValueError("'revision' belongs to 'path'")
        return self

    @model_validator(mode="after")
    def _pieces_are_not_float8(self) -> Self:
        if self.partition and self.precision == "fp8":
            raise ValueError(
                "partition does not go with precision 'fp8', whose weights ZeRO cannot partition; set precision to "
                "'bf16', or partition to false"
            )
        return self


class ValidationRecipe(Strict):
    """Held-out masked-language-model loss, the same for all arms (docs/fairness.md)."""

    at: list[Fraction] = [0.25, 0.5, 0.75, 1.0]  # fractions of the budget
    num_samples: Count = 256
    probe_steps: Annotated[int, Field(ge=0, le=10**9)] = 100  # steps of the probe head on the frozen student
    probe_learning_rate: Positive = 1e-3


class TuningRecipe(Strict):
    """Trials before training, as many for every arm at the same small budget (docs/fairness.md, clause 16).

    A trial is a learning rate, with a value of one option of the objective where the arm has a list of those. In lists
    that may hold it, null stands for a trial that an arm gives up.
    """

    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    weights: dict[
        PathPart, dict[str, Annotated[list[float | None], Field(min_length=1)]]
    ] = {}  # arm -> option -> values
    learning_rates_alone: list[Positive | None] | None = None  # of arms without a weight, where other arms have one
    budget: Budget  # of each trial
    seed: Seed = 1000  # of all trials, and of no run that is reported
    measure: Literal["probe_mlm_loss"] = "probe_mlm_loss"  # held out; the lowest is chosen
    charged: bool = False  # whether what an arm's trials spent is taken off that arm's budget

    def num_trials(self, arm: str) -> int:
        """How many trials ``arm`` is given, those it gives up included."""
        if arm in self.weights:
            return len(self.learning_rates) * len(next(iter(self.weights[arm].values())))
        return len(self.learning_rates if self.learning_rates_alone is None else self.learning_rates_alone)

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        for arm, options in self.weights.items():
            if len(options) != 1:
                raise ValueError(
                    f"weights.{arm} names {len(options)} options: one for each arm, so that effort is equal"
                )
        if self.budget.calibrate is not None:
            raise ValueError("calibrate belongs to the study's budget, and then holds for the trials as well")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        lists: list[list[Any]] = [self.learning_rates, self.learning_rates_alone or []]
        lists += [values for options in self.weights.values() for values in options.values()]
        for values in lists:
            given = [value for value in values if value is not None]
            if len(set(given)) != len(given) or (values and not given):
                raise ValueError(f"{values}: different values, at least one (null stands for a trial that is given up)")
        return self


class MarkersRecipe(Strict):
    """Students of smaller budgets out of one run: at each fraction a branch leaves it and brings its rate down."""

    at: Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)] = [0.2, 0.4, 0.6, 0.8]
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1  # of a branch's own budget; 0: none, the student as it is
    finetune: bool = True  # with the study's section 'finetune', like the last student

    @property
    def branches(self) -> list[float]:
        """The fractions that need a branch, in order: 1.0 is the end of the run itself."""
        return sorted({fraction for fraction in self.at if fraction < 1.0})

    def start(self, fraction: float) -> float:
        """The fraction of the budget at which the branch of ``fraction`` leaves the run."""
        return round(fraction * (1.0 - self.decay), 12)


class StudyGridRecipe(Strict):
    """Makes the recipe a grid of studies: each budget with each pool of text is a cell, a whole study of its own."""

    budgets: Annotated[list[Positive], Field(min_length=1)] = [1.0]  # multiples of the study's budget
    unique_tokens: Annotated[list[Count | None], Field(min_length=1)]  # null: all there is

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        axes: dict[str, list[Any]] = {"budgets": self.budgets, "unique_tokens": self.unique_tokens}
        for what, values in axes.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{what} names a value twice: {values}")
        return self


# --- fine-tuning ------------------------------------------------------------------------------------------


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

    @model_validator(mode="after")
    def _of_a_data_set(self) -> Self:
        lone = [key for key in ("subset", "revision") if getattr(self, key) is not None and self.dataset is None]
        if lone:
            raise ValueError(f"{' and '.join(lone)} belong to 'dataset', which is not given")
        return self

    @model_validator(mode="after")
    def _of_own_data(self) -> Self:
        fields = type(self).model_fields
        own = [key for key in ("dev", "test", "text", "label", "type") if getattr(self, key) != fields[key].default]
        if self.is_glue and own:
            raise ValueError(f"{', '.join(own)}: of own data, which needs 'train' or 'dataset' too")
        return self


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


class FinetuneRecipe(Strict):
    """The separate stage. Stand-alone (``glue.yaml``) or as the section ``finetune`` of a study.

    Defaults are those of the preset ``study``; another preset fills in what the recipe does not give itself.
    """

    kind: Literal["finetune"] = "finetune"
    tasks: Annotated[list[TaskRecipe], Field(min_length=1)]
    glue_path: str | None = None  # directory with TASK/train.tsv; None: nyu-mll/glue from the hub
    glue_revision: Revision | None = None  # of nyu-mll/glue; None: the commit in finetune/glue.py
    preset: Literal["study", "sane"] | None = None  # kd_megatron/finetune_presets.py
    grid: GridRecipe = GridRecipe()
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    halving: bool = False  # after each seed, the worse half of a task's settings is given up
    selection: SelectionRecipe = SelectionRecipe()
    epochs: Positive = STUDY["epochs"]
    max_length: Count = STUDY["max_length"]
    schedule: Literal["polynomial", "cosine", "constant"] = STUDY["schedule"]  # after the warm-up
    decay_power: Positive = STUDY["decay_power"]  # of the polynomial schedule; 1: linear
    warmup_fraction: Fraction = STUDY["warmup_fraction"]
    weight_decay: Annotated[float, Field(ge=0.0)] = STUDY["weight_decay"]
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = STUDY["betas"]
    epsilon: Positive = STUDY["epsilon"]
    gradient_clipping: Positive | None = STUDY["gradient_clipping"]  # norm of the whole gradient; None: unclipped
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = STUDY["dropout"]  # None: what the model's config says
    untrained_top: Literal["keep", "drop", "reinitialise"] = "keep"  # what the model's card says was never trained
    evaluate_every_epochs: Positive | None = None  # dev metrics on the way; None: at the end alone
    precision: Precision = "auto"
    save_predictions: bool = True
    tensorboard: bool = True

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, raw: Any) -> Any:
        return fill_in(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _one_source_of_glue(self) -> Self:
        if self.glue_path is not None and self.glue_revision is not None:
            raise ValueError("glue_revision is of the hub's copy, and glue_path names a local one: give one of them")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        lists: dict[str, list[Any]] = {"seeds": self.seeds, "tasks": [task.name for task in self.tasks]}
        for what, values in lists.items():
            repeated = sorted({value for value in values if values.count(value) > 1}, key=str)
            if repeated:
                raise ValueError(f"{what} are given twice: {repeated}")
        return self


class StudyRecipe(Strict):
    """Arms x seeds under one budget, then fine-tuning and a report."""

    kind: Literal["study"]
    name: PathPart
    description: str = ""
    data: DataRecipe
    student: EncoderRecipe
    teacher: TeacherRecipe | None = None  # may be absent when no arm distils
    arms: Annotated[dict[PathPart, dict[str, Any]], Field(min_length=1)]  # name -> objective and its options
    budget: Budget
    training: TrainingRecipe = TrainingRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    tuning: TuningRecipe | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    finetune: FinetuneRecipe | None = None
    markers: MarkersRecipe | None = None
    grid: StudyGridRecipe | None = None  # None: one study
    allow_difference: list[str] = []  # dotted keys that arms may override beside their objective's options
    output: PathText | None = None  # anywhere; None: studies/NAME
    notes: list[str] = []  # printed in the report, such as licences and caveats

    @model_validator(mode="after")
    def _pieces_are_not_compiled(self) -> Self:
        if self.teacher and self.teacher.partition and self.training.compile:
            raise ValueError(
                "teacher.partition does not go with training.compile: weights are gathered in hooks around modules, "
                "which compiled code goes round; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _branches_leave_after_the_warm_up(self) -> Self:
        warmup = self.training.warmup_fraction
        if self.markers is None:
            return self
        if self.training.schedule == "constant" and self.markers.decay > 0:
            raise ValueError(
                "with training.schedule constant the last student's learning rate never comes down, and that of "
                "branches would. To fix: take another schedule, or markers.decay 0"
            )
        early = [at for at in self.markers.branches if self.markers.start(at) < warmup]
        if early:
            raise ValueError(
                f"markers.at {early[0]:g}: its branch would leave at {self.markers.start(early[0]):g} of the budget, "
                f"within the warm-up ({warmup:g}), where the learning rate has not come up. To fix: take larger "
                "fractions, or a smaller markers.decay or training.warmup_fraction"
            )
        return self

    @model_validator(mode="after")
    def _a_grid_names_its_pools(self) -> Self:
        if self.grid and self.data.unique_tokens is not None:
            raise ValueError("data.unique_tokens and grid.unique_tokens both say how much text there is: give one")
        return self

    @model_validator(mode="after")
    def _masks_of_a_cache_are_fixed(self) -> Self:
        if self.teacher and self.teacher.cache and self.data.mask_seed is None:
            raise ValueError(
                "teacher.cache needs data.mask_seed: what a teacher says of a window is kept for one mask of it. To "
                "fix: write data.mask_seed: 1 (any whole number; all arms then see each window with one mask)"
            )
        return self

    @model_validator(mode="after")
    def _a_cache_is_not_calibrated(self) -> Self:
        if self.teacher and self.teacher.cache and self.budget.calibrate is not None:
            raise ValueError(
                "budget.calibrate does not go with teacher.cache: a window's first visit costs more than its later "
                "ones, and a few steps cannot tell how many there will be of each; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _arms_are_tuned_alike(self) -> Self:
        tuning = self.tuning
        if tuning is None:
            return self
        if unknown := sorted(tuning.weights.keys() - self.arms.keys()):
            raise ValueError(f"tuning.weights names {', '.join(unknown)}, which is no arm of {', '.join(self.arms)}")
        numbers = {arm: tuning.num_trials(arm) for arm in self.arms}
        if len(set(numbers.values())) > 1:
            listed = ", ".join(f"{arm} {number}" for arm, number in numbers.items())
            raise ValueError(
                f"tuning gives arms unequal numbers of trials ({listed}). To fix: give every arm in tuning.weights as "
                f"many values, and {max(numbers.values())} learning rates in tuning.learning_rates_alone to arms "
                "without a weight; null in place of a value is a trial that an arm gives up"
            )
        if tuning.seed in self.seeds:
            raise ValueError(
                f"tuning.seed {tuning.seed} is one of seeds: what is chosen on a run must not be reported of it"
            )
        if tuning.charged and (tuning.budget.unit, tuning.budget.charge) != (self.budget.unit, self.budget.charge):
            raise ValueError(
                "tuning.charged takes trials off the budget, so both have one unit and charge the same accounts; "
                f"given: {tuning.budget.unit} {tuning.budget.charge} and {self.budget.unit} {self.budget.charge}"
            )
        if tuning.charged and tuning.budget.limit * max(numbers.values()) >= self.budget.limit:
            raise ValueError("tuning.charged: the trials would use up the whole budget; make tuning.budget smaller")
        return self
