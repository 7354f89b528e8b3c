"""What `device_steps` times on a GPU, and the same small, for a dry run on a CPU: models, arms and levers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.steps.levers import WHOLE, WHOLE_LEVERS, Levers, carried_out
from benchmarks.steps.made_up_inputs import MADE_UP
from benchmarks.steps.variants import Variant
from kd_megatron.engine.flops import SequenceCost
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study.effective import run_recipe

GLOBAL_BATCHES = 2  # in the pool: the teacher cache is warm from the third step on


WHOLE_COMPILED = f"{WHOLE} + compile"
OURS, COMPILED, FP8, CACHED = "ours", "ours + compile", "ours + compile + FP8", "ours + compile + cache"
# In the order in which they are built: what the time does not allow is at the end.
LEVERS: dict[str, Levers] = {
    WHOLE: WHOLE_LEVERS,
    COMPILED: Levers(compiled=True),
    FP8: Levers(compiled=True, fp8_teacher=True),
    CACHED: Levers(compiled=True, cached_teacher=True),
    OURS: Levers(),
    WHOLE_COMPILED: replace(WHOLE_LEVERS, compiled=True),
}
MAIN_LEVERS = (WHOLE, COMPILED, FP8, CACHED)

# Relative differences of a loss term to that of whole models in each of the first steps. In bfloat16 at width 768 they
# were 1e-4 at most, 3e-3 with an FP8 teacher of four layers, 4e-3 where a cached teacher has another gradient
# (vanilla_kd). What float8 may cost is another question: a loss of nearly nothing, as of a teacher with random weights,
# differs by a large part of itself. It is said, and the lever is timed all the same.
ALLOWED = 0.02
EXPECTED_FP8 = 0.05


@dataclass(frozen=True)
class StepSetting:
    """Student and teacher, at one length, with one batch for all arms."""

    name: str
    student: Mapping[str, int]  # of an `EncoderRecipe`
    teacher: Mapping[str, int]
    num_relation_heads: int
    length: int
    batch_size: int
    share: float  # of the time that is left when its turn comes
    levers: Sequence[str] = tuple(LEVERS)
    has_targets: bool = False  # `TARGETS` are for it

    def __str__(self) -> str:
        return f"{self.name} L{self.length}"


@dataclass(frozen=True)
class StepSizes:
    """All that is timed."""

    places: Sequence[StepSetting]
    precision: str
    compiler: str | None  # None: torch.compile's own
    num_checked_steps: int
    num_rounds: int
    steps_per_round: int  # without a wait between them, as in training
    profiled: Sequence[str] = ("scratch", "minilm")  # arms whose kernels are listed, where they are compiled


def encoder(width: int, num_layers: int, num_heads: int) -> dict[str, int]:
    """BERT's proportions."""
    sizes = {"hidden_size": width, "num_layers": num_layers, "num_attention_heads": num_heads}
    return sizes | {"intermediate_size": 4 * width}


BASE = ("6x768 from 12x768", encoder(768, 6, 12), encoder(768, 12, 12), 48)
LARGE = ("12x1024 from 24x1024", encoder(1024, 12, 16), encoder(1024, 24, 16), 64)
GPU = StepSizes(
    places=(
        StepSetting(*BASE, length=128, batch_size=512, share=0.5, has_targets=True),
        StepSetting(*LARGE, length=128, batch_size=256, share=0.5, levers=MAIN_LEVERS),
        StepSetting(*BASE, length=512, batch_size=128, share=1.0, levers=MAIN_LEVERS),
    ),
    precision="bf16",
    compiler=None,
    num_checked_steps=5,
    num_rounds=12,
    steps_per_round=3,
)
TINY = ("2x32 from 4x32", encoder(32, 2, 2), encoder(32, 4, 2), 4)
DRY_RUN = StepSizes(
    places=(StepSetting(*TINY, length=16, batch_size=4, share=1.0, has_targets=True),),
    precision="fp32",
    compiler="aot_eager",  # which needs no C++ compiler
    num_checked_steps=5,
    num_rounds=2,
    steps_per_round=1,
)


@dataclass(frozen=True)
class Target:
    """The least that is to be reached: scratch's MFU on an H200, or a share of what an arm's FLOPs allow."""

    lever: str
    figure: str  # "ratio": tokens per second relative to scratch; or "mfu"
    least: float  # of a ratio: the share of its `flop_bound`


TARGETS = (
    Target(COMPILED, "mfu", 0.45),
    Target(COMPILED, "ratio", 0.95),
    Target(FP8, "ratio", 0.9),
    Target(CACHED, "ratio", 0.9),
)
FP8_TEACHER_SPEED = 1.5  # of a teacher's products in float8, with what is around them, relative to bf16


def flop_bound(scratch: SequenceCost, arm: SequenceCost, lever: str) -> float:
    """The arm's tokens per second relative to scratch where both do as many FLOPs a second: no code can do better.

    An FP8 teacher's FLOPs count as fewer by `FP8_TEACHER_SPEED`; of a cached teacher those of later visits count.
    """
    teacher = arm.teacher_again / (FP8_TEACHER_SPEED if LEVERS[lever].fp8_teacher else 1.0)
    return scratch.student / (arm.student + teacher)


def recipe(place: StepSetting, precision: str) -> StudyRecipe:
    """A study of all four arms at ``place``, on made-up data."""
    window_tokens = place.batch_size * place.length
    raw: dict[str, Any] = {
        "kind": "study",
        "name": place.name.replace(" ", "_"),
        "data": {
            "shards": [{"path": MADE_UP}],
            "sequence_length": place.length,
            "unique_tokens": GLOBAL_BATCHES * window_tokens,
            "mask_seed": 1,
        },
        "student": dict(place.student),
        "teacher": {"train": {"encoder": dict(place.teacher), "budget": {"tokens": 1}}, "precision": precision},
        "arms": {
            "scratch": {"objective": "scratch"},
            "vanilla_kd": {"objective": "vanilla_kd"},
            "minilm": {"objective": "minilm", "num_relation_heads": place.num_relation_heads},
            "tinybert": {"objective": "tinybert"},
        },
        "budget": {"tokens": 1},
        "training": {
            "global_batch_size": place.batch_size,
            "micro_batch_size": place.batch_size,
            "learning_rate": 1e-4,
            "precision": precision,
            "tensorboard": False,
        },
        "validation": {"num_samples": 8},
    }
    return config.validate(StudyRecipe, raw, where=place.name)


def variant(study: StudyRecipe, arm: str, name: str, cache: Path, micro_batch_size: int) -> Variant:
    """``arm`` by the lever called ``name``; ``cache`` is an empty directory, used by a teacher cache."""
    levers = LEVERS[name]
    resolved = run_recipe(study, arm, study.seeds[0])
    training = resolved.training.model_copy(update={"micro_batch_size": micro_batch_size})
    return Variant(
        name=f"steps/{arm}",
        backend=name,
        study=carried_out(resolved.model_copy(update={"training": training}), arm, levers, cache),
        arm=arm,
        whole_teacher=levers.whole_teacher,
        whole_student=levers.whole_student,
        compiled_objective=levers.compiled and not levers.fused_losses,
        num_warmup_steps=0,
    )
