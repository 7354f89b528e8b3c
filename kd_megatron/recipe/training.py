"""How students are trained, validated, tuned, and left on the way."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from kd_megatron.recipe.budget import Budget
from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.paths import PathPart
from kd_megatron.recipe.policy import ACROSS, AT_RESUME, BY_ARM, FOUND_OUT, KEPT, NO_WEIGHT, ON
from kd_megatron.recipe.types import Count, Fraction, Positive, Precision, Seed


class TrainingRecipe(Strict):
    """Optimisation and bookkeeping of pretraining, the same for all arms."""

    global_batch_size: Count = 256  # sequences per optimizer step
    micro_batch_size: Annotated[Count, AT_RESUME] = 32  # sequences per forward pass and process, at most
    learning_rate: Positive = 1e-3  # peak
    warmup_fraction: Fraction = 0.06  # of the budget
    warmup_tokens: Count | None = None  # given: the warm-up's length instead of the fraction
    warmup_min_steps: Count = 5  # it is never shorter: a small budget's fraction may be less than a step
    schedule: Literal["linear", "cosine", "constant", "wsd"] = "linear"  # wsd: constant, then a linear decay to zero
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # of the budget: the decay of schedule wsd
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01  # not on biases and layer norms
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: Positive = 1e-15  # far below any arm's gradients: a larger one mutes an arm whose loss is small
    gradient_clipping: Annotated[float, Field(ge=0.0)] = 0.0  # global norm; 0 is off: norms of arms are of no one scale
    precision: Precision = "auto"
    stop_at_last_tap: bool = True  # the student computes nothing above what its objective reads, in training
    attention: Literal["sdpa", "flash"] = "sdpa"  # of student and teacher; flash: the optional package flash-attn
    # student and teacher by torch.compile; auto: on GPUs at ZeRO stages 0 to 2, decided once for all arms
    compile: Annotated[bool | Literal["auto"], AT_RESUME] = "auto"
    activation_checkpointing: bool = False  # keep a student layer's input alone and run it again in the backward pass
    # in which gradients are added over processes; bf16: half the traffic, and rounded
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    ds_config: Annotated[PathPart, AT_RESUME] = "zero0"  # a file of ds_configs/
    log_every_steps: Annotated[Count, NO_WEIGHT, ACROSS] = 10
    checkpoint_every_steps: Annotated[Count, KEPT] = 200
    keep_checkpoints: Annotated[Count, KEPT] = 2  # the newest ones; those below are kept beside them, for good
    keep_every_steps: Annotated[Count | None, KEPT] = None  # a checkpoint at each multiple of this
    # fractions of the budget: a checkpoint at the first step at or after each
    keep_at: Annotated[list[Fraction], ACROSS, FOUND_OUT] = []
    tensorboard: Annotated[bool, KEPT] = True

    @property
    def is_compiled(self) -> bool:
        """Whether layers run compiled. ``auto`` is decided before (`engine.compiling`); undecided, they do not."""
        return self.compile is True


class ValidationRecipe(Strict):
    """Held-out masked-language-model loss, the same for all arms (docs/fairness.md)."""

    at: Annotated[list[Fraction], ACROSS] = [0.25, 0.5, 0.75, 1.0]  # fractions of the budget
    num_samples: Count = 256
    skip_samples: Annotated[int, Field(ge=0, le=10**15)] = 0  # held-out windows before them that are left out
    probe_windows: Count = 2048  # of training text, whose frozen states the probe learns from; an eighth more says when
    probe_steps: Annotated[int, Field(ge=0, le=10**9)] = 20_000  # at most; it ends when it has converged
    probe_learning_rate: Positive = 1e-3


class TuningRecipe(Strict):
    """Trials before training, as many for every arm at the same small budget (docs/fairness.md, clause 16).

    A trial is a learning rate, with a value of one option of the objective where the arm has a list of those. In lists
    that may hold it, null stands for a trial that an arm gives up.
    """

    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    # arm -> option -> values
    weights: Annotated[dict[PathPart, dict[str, Annotated[list[float | None], Field(min_length=1)]]], BY_ARM] = {}
    learning_rates_alone: list[Positive | None] | None = None  # of arms without a weight, where other arms have one
    budget: Budget  # of each trial
    seed: Seed = 1000  # of all trials, and of no run that is reported
    num_seeds: Count = 1  # of each trial: seed, seed + 1, ...; the mean of their losses chooses
    # rounds in which every arm gets as many trials more, beyond the edge at which the best of some arm lies
    most_extensions: Annotated[int, Field(ge=0, le=10)] = 2
    measure: Literal["probe_mlm_loss"] = "probe_mlm_loss"  # held out; the lowest is chosen
    charged: bool = False  # whether what an arm's trials spent is taken off that arm's budget

    @property
    def seeds(self) -> list[int]:
        """Those of each trial."""
        return list(range(self.seed, self.seed + self.num_seeds))

    def num_trials(self, arm: str) -> int:
        """How many trials ``arm`` is given at first, those it gives up included."""
        if arm in self.weights:
            return len(self.learning_rates) * len(next(iter(self.weights[arm].values())))
        return len(self.learning_rates if self.learning_rates_alone is None else self.learning_rates_alone)

    def problems(self) -> Iterator[str]:
        """Several weights of an arm; a calibrated budget; values that are given twice, or lists that give all up."""
        for arm, options in self.weights.items():
            if len(options) != 1:
                yield f"weights.{arm} names {len(options)} options: one for each arm, so that effort is equal"
        if self.budget.calibrate is not None:
            yield "calibrate belongs to the study's budget, and then holds for the trials as well"
        lists: list[list[Any]] = [self.learning_rates, self.learning_rates_alone or []]
        lists += [values for options in self.weights.values() for values in options.values()]
        for values in lists:
            given = [value for value in values if value is not None]
            if len(set(given)) != len(given) or (values and not given):
                yield f"{values}: different values, at least one (null stands for a trial that is given up)"


class MarkersRecipe(Strict):
    """Students of smaller budgets out of one run: at each fraction a branch leaves it and brings its rate down."""

    at: Annotated[list[Annotated[float, Field(gt=0.0, le=1.0)]], Field(min_length=1)] = [0.2, 0.4, 0.6, 0.8]
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1  # of a branch's own budget; 0: none, the student as it is
    finetune: Annotated[bool, ON] = True  # with the study's section 'finetune', like the last student

    @property
    def branches(self) -> list[float]:
        """The fractions that need a branch, in order: 1.0 is the end of the run itself."""
        return sorted({fraction for fraction in self.at if fraction < 1.0})

    def start(self, fraction: float) -> float:
        """The fraction of the budget at which the branch of ``fraction`` leaves the run."""
        return round(fraction * (1.0 - self.decay), 12)
