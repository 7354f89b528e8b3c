"""FLOPs of whole training steps, models and losses of the shipped sizes, against torch's counter: within 2 %.

The step is `engine.simulate`'s: real modules and objectives on PyTorch's device ``meta``, where sizes cost nothing. Its
attention makes no product, as torch's counter does not see fused attention on a processor either: two products of
L x L x D a layer, counted by hand. Element-wise work of losses is in our count and not in torch's: hence the 2 %.
"""

from pathlib import Path

import pytest
from tolerances import COUNTED_STEP_RELATIVE
from torch.utils.flop_counter import FlopCounterMode

from kd_megatron.engine import flops
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.models.build import shape_of, student_config
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import StudyRecipe, config

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 30_522
SMALL_STUDENT = ["student.hidden_size=384", "student.intermediate_size=1536"]  # another width than the teacher's
AS_CODED = "paper_6l_as_coded"
CASES = {
    "vanilla_kd": ("paper_6l", "vanilla_kd", {}, []),
    "minilm": ("paper_6l", "minilm", {}, []),
    "tinybert with a projection": ("paper_6l", "tinybert", {}, SMALL_STUDENT),
    "all positions and cosine": ("paper_6l", "vanilla_kd", {"positions": "all", "weight_cosine": 1.0}, []),
    "activation checkpointing": ("paper_6l", "scratch", {}, ["training.activation_checkpointing=true"]),
}
MORE_CASES = {
    "tinybert": ("paper_6l", "tinybert", {}, []),
    "own relation heads": ("paper_6l", "minilm", {"num_relation_heads": 12, "student_layer": 3}, []),
    "values alone, lower layers": ("paper_6l", "minilm", {"relations": {"values": 1.0}, "teacher_layer": 7}, []),
    "whole student": ("paper_6l", "minilm", {}, ["training.stop_at_last_tap=false"]),
    "large teacher to layer 21": ("paper_12l", "minilm", {}, []),
    "longer": ("paper_6l", "tinybert", {}, ["data.sequence_length=512"]),
    **{f"{arm} as coded": (AS_CODED, f"{arm}_as_coded", {}, []) for arm in ("vanilla_kd", "minilm", "tinybert")},
}
ALL = [*CASES, *(pytest.param(case, marks=pytest.mark.long) for case in MORE_CASES)]


def study_of(name: str, arm: str, options: dict[str, object], overrides: list[str]) -> StudyRecipe:
    fixed = ["training.precision=fp32", "teacher.precision=fp32", "training.micro_batch_size=1"]
    study = config.load(str(ROOT / f"recipes/{name}.yaml"), StudyRecipe, [*fixed, *overrides])
    return study.model_copy(update={"arms": {arm: {**study.arms[arm], **options, "backend": "reference"}}})


def counted(study: StudyRecipe, arm: str) -> float:
    """Products of one micro-batch of one sequence; the simulation runs it twice."""
    with FlopCounterMode(display=False) as counter:
        simulate_arm(study, arm, VOCAB_SIZE)
    return counter.get_total_flops() / 2 + attention(study, arm)


def attention(study: StudyRecipe, arm: str) -> float:
    """By hand: forward of every layer that runs whole (again where it is recomputed), backward where a loss reaches."""
    student, teacher = student_config(study.student, VOCAB_SIZE), flops.teacher_config(study, VOCAB_SIZE)
    assert teacher is not None
    options = of_arm.parse_options(study.arms[arm], "test")
    objective = of_arm.build(options, shape_of(student), shape_of(teacher))
    length, training = study.data.sequence_length, study.training
    reached = objective.needs_student.num_whole_layers(student.num_hidden_layers)
    forward = reached if training.stop_at_last_tap else student.num_hidden_layers
    forward += reached * training.activation_checkpointing
    of_student = (forward + 2 * reached) * 4.0 * length**2 * student.hidden_size
    if objective.needs_teacher is None:
        return of_student
    whole = objective.needs_teacher.num_whole_layers(teacher.num_hidden_layers)
    return of_student + whole * 4.0 * length**2 * teacher.hidden_size


@pytest.mark.parametrize("case", ALL)
def test_a_step_costs_what_torch_counts(case: str) -> None:
    name, arm, options, overrides = (CASES | MORE_CASES)[case]
    study = study_of(name, arm, options, overrides)
    cost = flops.arm_cost(study, arm, VOCAB_SIZE)
    ours = cost.total_flops_per_token * study.data.sequence_length
    assert ours == pytest.approx(counted(study, arm), rel=COUNTED_STEP_RELATIVE)
