"""The published study's token counts, from a model of what its own code computes, and what is computed here instead.

One published number is put in: No-KD's 4.6B tokens in 4 hours, 6 layers. It says which share of the data sheet's rates
the study's code reached (`Model.efficiency`). All other counts are reconstructed by `eager_step`: those of
the distillation arms, of 24 hours, and of 12 layers. The study's GPU is not known to us; the range over the GPUs of
`gpus.GPUS` says how much hangs on it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from transformers import PretrainedConfig

from benchmarks.published_study.eager_losses import LOSSES
from benchmarks.published_study.eager_step import LENGTH, MASKED, Counted, count
from kd_megatron.engine import flops
from kd_megatron.engine.flops import encoder_flops, head_flops
from kd_megatron.errors import RecipeError
from kd_megatron.machine.gpus import GPUS, Gpu
from kd_megatron.models.build import BERT_VOCABULARY, config_or_known, shape_of
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import resolve_arm, split_arm
from kd_megatron.report.study.published import FILE, REFERENCE
from kd_megatron.tensors import Needs

SOURCE = "Bui et al. 2024, arXiv 2404.19319"
ASSUMED_GPU = "a100"  # from the speed: 91 TFLOP/s of matrix products in No-KD, more than a V100's code reaches


@dataclass(frozen=True)
class PublishedStudy:
    """One setting of the study: what its students are, and the tokens that it reports for each arm."""

    name: str
    num_layers: int
    hidden_size: int
    teacher: str
    hours: float
    tokens: Mapping[str, float]


def _setting(name: str, num_layers: int, hidden_size: int, teacher: str, hours: float, limited: bool) -> PublishedStudy:
    """With the token counts of ``published.json``."""
    settings = json.loads(FILE.read_text(encoding="utf-8"))["settings"]
    (rows,) = [s["rows"] for s in settings if (s["num_layers"], s["limited"]) == (num_layers, limited)]
    tokens = {arm: float(row["tokens"]) for arm, row in rows.items()}
    return PublishedStudy(name, num_layers, hidden_size, teacher, hours, tokens)


PUBLISHED = (
    _setting("6 layers", 6, 768, "google-bert/bert-base-uncased", 4.0, limited=False),
    _setting("6 layers, limited data", 6, 768, "google-bert/bert-base-uncased", 24.0, limited=True),
    _setting("12 layers", 12, 1024, "google-bert/bert-large-uncased", 11.3, limited=False),
)
ANCHOR = PUBLISHED[0]  # its `REFERENCE` is the number that is put in


@dataclass(frozen=True)
class PublishedArm:
    """One arm as the study's code runs it, beside the same objective here."""

    arm: str
    published_tokens: float
    reconstructed_tokens: float
    lowest: float  # of the reconstructions for the other GPUs
    highest: float
    flops_per_token_there: float  # of matrix products
    flops_per_token_here: float | None  # None: the recipe has no such arm
    saved: Mapping[str, float]  # FLOPs per token by lever; what is left of the difference is the loss

    @property
    def tokens_here(self) -> float | None:
        """For the FLOPs that the study's run spent, as reconstructed."""
        if self.flops_per_token_here is None:
            return None
        return self.reconstructed_tokens * self.flops_per_token_there / self.flops_per_token_here


@dataclass(frozen=True)
class AsPublished:
    """A setting of the study, modelled."""

    setting: PublishedStudy
    gpu: Gpu
    efficiency: float  # share of the data sheet's rates, from the one number that is put in
    rows: list[PublishedArm]

    def ratio(self, row: PublishedArm) -> float:
        """Predicted tokens over those of No-KD."""
        return row.reconstructed_tokens / self.rows[0].reconstructed_tokens

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        as_dict = asdict(self)
        for written, row in zip(as_dict["rows"], self.rows, strict=True):
            written |= {"reconstructed_ratio": self.ratio(row), "tokens_here": row.tokens_here}
        return as_dict | {"source": SOURCE, "put_in": f"{ANCHOR.name}: {REFERENCE}"}


def as_published(recipe: StudyRecipe, gpu: Gpu | None = None) -> AsPublished:
    """Model the published setting that ``recipe`` repeats, on ``gpu`` (None: `ASSUMED_GPU`).

    Raises:
        RecipeError: the study reports no such setting.
    """
    setting, gpu = published_setting(recipe), gpu or GPUS[ASSUMED_GPU]
    rows = [_row(recipe, arm, setting, gpu) for arm in LOSSES]
    return AsPublished(setting, gpu, efficiency(gpu), rows)


def published_setting(recipe: StudyRecipe) -> PublishedStudy:
    """The setting with the student's size and the hours of ``recipe``."""
    student, hours = recipe.student, recipe.budget.hours
    for setting in PUBLISHED:
        if (setting.num_layers, setting.hidden_size, setting.hours) == (student.num_layers, student.hidden_size, hours):
            return setting
    settings = "; ".join(f"{s.num_layers} layers x {s.hidden_size}, {s.hours:g} hours" for s in PUBLISHED)
    raise RecipeError(
        given=f"--as-published: a student of {student.num_layers} layers x {student.hidden_size} with "
        f"{'another budget than hours' if hours is None else f'{hours:g} hours'}",
        expected=f"a setting that {SOURCE} reports: {settings}",
        fix="plan recipes/paper_6l.yaml, recipes/paper_6l_limited.yaml or recipes/paper_12l.yaml as they are",
    )


@cache
def counted(arm: str, num_layers: int, teacher: str) -> Counted:
    """A step of the study's code for ``arm``, its student as wide as the teacher."""
    return count(arm, _student(num_layers, teacher), config_or_known(teacher))


def reconstructed_tokens(setting: PublishedStudy, arm: str, gpu: Gpu) -> float:
    """Tokens of ``arm`` in the setting's hours."""
    speed = counted(arm, setting.num_layers, setting.teacher).tokens_per_second(gpu)
    return 3600.0 * setting.hours * efficiency(gpu) * speed


def efficiency(gpu: Gpu) -> float:
    """The share of the data sheet's rates at which No-KD, 6 layers, gets its published tokens in its hours."""
    ideal = counted(REFERENCE, ANCHOR.num_layers, ANCHOR.teacher).tokens_per_second(gpu)
    return ANCHOR.tokens[REFERENCE] / (3600.0 * ANCHOR.hours * ideal)


def _student(num_layers: int, teacher: str) -> PretrainedConfig:
    config = config_or_known(teacher)
    config.num_hidden_layers = num_layers
    return config


def _row(recipe: StudyRecipe, arm: str, setting: PublishedStudy, gpu: Gpu) -> PublishedArm:
    elsewhere = [reconstructed_tokens(setting, arm, other) for other in GPUS.values()]
    there = counted(arm, setting.num_layers, setting.teacher).flops_per_token
    named = _arm_of(recipe, arm)
    here, saved = None, {}
    if named is not None:
        here = flops.arm_cost(resolve_arm(recipe, named), named, BERT_VOCABULARY).total_flops_per_token
        saved = _levers(recipe, named, setting)
    return PublishedArm(
        arm=arm,
        published_tokens=setting.tokens[arm],
        reconstructed_tokens=reconstructed_tokens(setting, arm, gpu),
        lowest=min(elsewhere),
        highest=max(elsewhere),
        flops_per_token_there=there,
        flops_per_token_here=here,
        saved=saved,
    )


def _arm_of(recipe: StudyRecipe, objective: str) -> str | None:
    """The first arm of the recipe with that objective as defined, not as the study codes it."""
    for arm, raw in recipe.arms.items():
        if raw.get("objective") == objective and not raw.get("as_coded"):
            return arm
    return None


def _levers(recipe: StudyRecipe, arm: str, setting: PublishedStudy) -> dict[str, float]:
    """FLOPs per token that are not spent here, by the reason why."""
    teacher = config_or_known(setting.teacher)
    student = _student(setting.num_layers, setting.teacher)
    options, _ = split_arm(recipe.arms[arm])
    objective = of_arm.build(of_arm.parse_options(options, f"arms.{arm}"), shape_of(student), shape_of(teacher))
    needs = objective.needs_teacher
    if needs is None:
        return {}
    of_student = head_flops(student, MASKED) * (not objective.needs_student.head)
    saved = {
        "unused heads": of_student + head_flops(teacher, MASKED) * (not needs.head),
        "student stops": _above(student, objective.needs_student),
        "teacher stops": _above(teacher, needs),
    }
    return {name: value / LENGTH for name, value in saved.items()}


def _above(config: PretrainedConfig, needs: Needs) -> float:
    """Forward of what lies above the highest tap."""
    whole = Needs(hidden=(config.num_hidden_layers,))
    return encoder_flops(config, whole, LENGTH) - encoder_flops(config, needs, LENGTH)
