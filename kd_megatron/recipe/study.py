"""A study: arms x seeds under one budget. A run is a study with one arm."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from kd_megatron.recipe.budget import Budget
from kd_megatron.recipe.config import Strict
from kd_megatron.recipe.controls import TEACHER, UNTRAINED, ControlsRecipe
from kd_megatron.recipe.finetune import FinetuneRecipe
from kd_megatron.recipe.models import EncoderRecipe, TeacherRecipe
from kd_megatron.recipe.paths import PathPart, PathText
from kd_megatron.recipe.policy import (
    ACROSS,
    AT_RESUME,
    LONGER,
    NO_WEIGHT,
    OF_ALL,
    OF_AN_ARM,
    OF_FINETUNING,
    OF_STUDENTS,
    OF_STUDY,
    OF_THE_TEACHER,
    PLACE,
    WORDS,
)
from kd_megatron.recipe.protocol import ProtocolRecipe
from kd_megatron.recipe.training import MarkersRecipe, TrainingRecipe, TuningRecipe, ValidationRecipe
from kd_megatron.recipe.types import Count, Positive, Seed


class ShardsRecipe(Strict):
    """One prepared shard set and its share of the samples."""

    path: PathText
    weight: Positive = 1.0


class DataRecipe(Strict):
    """What the students read."""

    shards: Annotated[list[ShardsRecipe], Field(min_length=1), PLACE]
    # corpus recipe: `study` and `pretrain` prepare it when the shards are not there
    corpus: Annotated[str | None, PLACE] = None
    sequence_length: Annotated[int, Field(ge=8)] = 128
    unique_tokens: Annotated[Count | None, ACROSS] = None  # cap on the pool; subsets are nested; epochs repeat it
    mask_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.15
    seed: Seed = 1234  # of the pool's nesting; order and masks follow the run's own seed
    mask_seed: Seed | None = None  # given: a window keeps one mask, in all epochs and runs; a teacher cache needs it


class StudyGridRecipe(Strict):
    """Makes the recipe a grid of studies: each budget with each pool of text is a cell, a whole study of its own."""

    budgets: Annotated[list[Positive], Field(min_length=1), LONGER] = [1.0]  # multiples of the study's budget
    unique_tokens: Annotated[list[Count | None], Field(min_length=1), LONGER]  # null: all there is

    def problems(self) -> Iterator[str]:
        """A value that is given twice."""
        axes: dict[str, list[Any]] = {"budgets": self.budgets, "unique_tokens": self.unique_tokens}
        for what, values in axes.items():
            if len(set(values)) < len(values):
                yield f"{what} names a value twice: {values}"


class StudyRecipe(Strict):
    """Arms x seeds under one budget, then fine-tuning and a report."""

    kind: Annotated[Literal["study"], OF_ALL, OF_STUDY, ACROSS]
    name: Annotated[PathPart, OF_ALL, OF_STUDY, ACROSS]
    description: Annotated[str, WORDS] = ""
    data: Annotated[DataRecipe, OF_ALL]
    student: Annotated[EncoderRecipe, OF_STUDENTS]
    teacher: Annotated[TeacherRecipe | None, OF_THE_TEACHER] = None  # may be absent when no arm distils
    arms: Annotated[dict[PathPart, dict[str, Any]], Field(min_length=1), OF_AN_ARM]  # name -> objective and its options
    budget: Annotated[Budget, OF_STUDENTS, ACROSS]
    training: Annotated[TrainingRecipe, OF_ALL] = TrainingRecipe()
    validation: Annotated[ValidationRecipe, OF_ALL, NO_WEIGHT] = ValidationRecipe()
    tuning: Annotated[TuningRecipe | None, OF_STUDENTS, OF_STUDY] = None
    seeds: Annotated[list[Seed], Field(min_length=1), OF_STUDY, LONGER, ACROSS] = [0]
    finetune: Annotated[FinetuneRecipe | None, OF_FINETUNING, ACROSS] = None
    controls: Annotated[ControlsRecipe, OF_STUDY, ACROSS] = ControlsRecipe()
    markers: Annotated[MarkersRecipe | None, OF_STUDENTS, OF_STUDY] = None
    grid: Annotated[StudyGridRecipe | None, OF_STUDY] = None  # None: one study
    protocol: Annotated[ProtocolRecipe | None, WORDS] = None  # no weight hangs on it; the report shows departures
    # dotted keys that arms may override beside their objective's options; a run is given its own overrides applied
    allow_difference: Annotated[list[str], OF_STUDY, LONGER, AT_RESUME] = []
    output: Annotated[PathText | None, WORDS] = None  # anywhere; None: studies/NAME
    notes: Annotated[list[str], WORDS] = []  # printed in the report, such as licences and caveats

    @property
    def wanted_controls(self) -> list[str]:
        """The controls of this study, in the order of the report."""
        has_teacher = self.controls.teacher and self.teacher is not None
        return [UNTRAINED] * self.controls.untrained + [TEACHER] * has_teacher

    def problems(self) -> Iterator[str]:
        """Sections that do not go together."""
        if self.teacher and self.teacher.partition and self.training.is_compiled:
            yield (
                "teacher.partition does not go with training.compile: weights are gathered in hooks around modules, "
                "which compiled code goes round; set one of them to false"
            )
        if self.markers:
            yield from self._problems_of_branches(self.markers)
        if self.grid and self.data.unique_tokens is not None:
            yield "data.unique_tokens and grid.unique_tokens both say how much text there is: give one"
        cache = self.teacher.cache if self.teacher else None
        if cache and self.data.mask_seed is None:
            yield (
                "teacher.cache needs data.mask_seed: what a teacher says of a window is kept for one mask of it. To "
                "fix: write data.mask_seed: 1 (any whole number; all arms then see each window with one mask)"
            )
        if cache and self.budget.calibrate is not None:
            yield (
                "budget.calibrate does not go with teacher.cache: a window's first visit costs more than its later "
                "ones, and a few steps cannot tell how many there will be of each; remove one of them"
            )
        if self.tuning:
            yield from self._problems_of_tuning(self.tuning)
        if self.protocol and (unknown := sorted({*(self.protocol.arms or [])} - self.arms.keys())):
            yield f"protocol.arms names {', '.join(unknown)}, which is no arm of {', '.join(self.arms)}"

    def _problems_of_branches(self, markers: MarkersRecipe) -> Iterator[str]:
        """Branches of a rate that never comes down, or that has not come up."""
        warmup = self.training.warmup_fraction
        if self.training.schedule == "constant" and markers.decay > 0:
            yield (
                "with training.schedule constant the last student's learning rate never comes down, and that of "
                "branches would. To fix: take schedule wsd, whose last student decays like branches, or markers.decay 0"
            )
        if self.training.schedule == "wsd" and markers.decay != self.training.decay_fraction:
            yield (
                f"markers.decay {markers.decay:g} is not training.decay_fraction {self.training.decay_fraction:g}: the "
                "last student would decay over another share of its budget than those of smaller budgets. To fix: give "
                "both one value"
            )
        early = [at for at in markers.branches if markers.start(at) < warmup]
        if early:
            yield (
                f"markers.at {early[0]:g}: its branch would leave at {markers.start(early[0]):g} of the budget, "
                f"within the warm-up ({warmup:g}), where the learning rate has not come up. To fix: take larger "
                "fractions, or a smaller markers.decay or training.warmup_fraction"
            )

    def _problems_of_tuning(self, tuning: TuningRecipe) -> Iterator[str]:
        """Arms that are not tuned alike, on a seed of its own, within the budget."""
        if unknown := sorted(tuning.weights.keys() - self.arms.keys()):
            yield f"tuning.weights names {', '.join(unknown)}, which is no arm of {', '.join(self.arms)}"
        numbers = {arm: tuning.num_trials(arm) for arm in self.arms}
        if len(set(numbers.values())) > 1:
            listed = ", ".join(f"{arm} {number}" for arm, number in numbers.items())
            yield (
                f"tuning gives arms unequal numbers of trials ({listed}). To fix: give every arm in tuning.weights as "
                f"many values, and {max(numbers.values())} learning rates in tuning.learning_rates_alone to arms "
                "without a weight; null in place of a value is a trial that an arm gives up"
            )
        if both := sorted({*tuning.seeds} & {*self.seeds}):
            yield f"tuning.seed {both[0]} is one of seeds: what is chosen on a run must not be reported of it"
        if tuning.charged and (tuning.budget.unit, tuning.budget.charge) != (self.budget.unit, self.budget.charge):
            yield (
                "tuning.charged takes trials off the budget, so both have one unit and charge the same accounts; "
                f"given: {tuning.budget.unit} {tuning.budget.charge} and {self.budget.unit} {self.budget.charge}"
            )
        if tuning.charged and tuning.budget.limit * tuning.num_seeds * max(numbers.values()) >= self.budget.limit:
            yield "tuning.charged: the trials would use up the whole budget; make tuning.budget smaller"
