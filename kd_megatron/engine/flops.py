"""FLOPs of an arm by hand count, per sequence: what the ledger charges and `plan` predicts.

Matrix products alone are counted, 2 m n k each; softmax, norms and element-wise work are below 2 % at these sizes.
Backward costs twice the forward for everything that the loss reaches. One legend: L length, K masked positions,
D hidden size, F feed-forward size, V vocabulary.
"""

from dataclasses import dataclass, fields

from transformers import PretrainedConfig

from kd_megatron.data import masking
from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.models.build import config_or_known, shape_of, student_config
from kd_megatron.objectives import of_arm, schedule
from kd_megatron.objectives.base import Objective
from kd_megatron.recipe import BudgetRecipe, StudyRecipe
from kd_megatron.teacher_cache.contents import kept_needs, refuse_dropout
from kd_megatron.tensors import Needs


@dataclass(frozen=True)
class SequenceCost:
    """FLOPs of one training sequence of ``length`` tokens, by account."""

    student: float
    teacher: float  # at the run's first visit of a window
    loss: float
    teacher_again: float  # at later visits: less than at the first with a teacher cache, else the same
    student_head: float = 0.0  # of ``student``: the MLM head
    teacher_head: float = 0.0  # of ``teacher``

    def teacher_flops(self, num_sequences: int, first_visits: int) -> float:
        """The teacher's share of so many sequences (docs/fairness.md, clause 14)."""
        return num_sequences * self.teacher_again + first_visits * (self.teacher - self.teacher_again)


@dataclass(frozen=True)
class ArmCost:
    """What an arm costs per token, and how large its models are (parameters with embeddings and head)."""

    student_flops_per_token: float
    teacher_flops_per_token: float
    loss_flops_per_token: float
    student_parameters: int
    teacher_parameters: int
    teacher_again_flops_per_token: float  # at later visits of a window; ``teacher_flops_per_token`` is at the first
    student_head_flops_per_token: float = 0.0  # of ``student_flops_per_token``: the MLM head
    teacher_head_flops_per_token: float = 0.0  # of ``teacher_flops_per_token``

    @property
    def head_flops_per_token(self) -> float:
        """The MLM heads of both models, which the totals of student and teacher include."""
        return self.student_head_flops_per_token + self.teacher_head_flops_per_token

    @property
    def total_flops_per_token(self) -> float:
        """Student, teacher and loss, at the first visit of a window."""
        return self.student_flops_per_token + self.teacher_flops_per_token + self.loss_flops_per_token

    def mean_flops_per_token(self, epochs: float) -> float:
        """The total, averaged over ``epochs`` visits of each window."""
        saved = self.teacher_flops_per_token - self.teacher_again_flops_per_token
        return self.total_flops_per_token - saved * (1.0 - 1.0 / max(1.0, epochs))


def projection_flops(config: PretrainedConfig, length: int) -> float:
    """Queries, keys or values of one layer: one product of L x D x D."""
    return 2.0 * length * config.hidden_size**2


def layer_flops(config: PretrainedConfig, length: int) -> float:
    """One layer, forward: projections, scores and their use (2 L^2 D each), output, feed-forward (2 of L D F)."""
    width, inner = config.hidden_size, config.intermediate_size
    attention = 2 * 2.0 * length**2 * width
    return 4 * projection_flops(config, length) + attention + 2 * 2.0 * length * width * inner


def head_flops(config: PretrainedConfig, num_positions: int) -> float:
    """MLM head, forward: a D x D transform and the D x V decoder at ``num_positions`` positions."""
    return 2.0 * num_positions * config.hidden_size * (config.hidden_size + config.vocab_size)


def _head_positions(needs: Needs, length: int, num_masked: int) -> int:
    return length * needs.all_logits + num_masked * needs.logits


def encoder_flops(config: PretrainedConfig, needs: Needs, length: int) -> float:
    """Forward as far as the taps reach: whole layers, and the projections wanted of one more."""
    num_whole = needs.num_whole_layers(config.num_hidden_layers)
    projections = len(needs.relations(num_whole + 1)) * projection_flops(config, length)
    return num_whole * layer_flops(config, length) + projections


def student_flops(
    config: PretrainedConfig,
    needs: Needs,
    length: int,
    num_masked: int,
    stops: bool = True,
    recomputes: bool = False,
) -> float:
    """Forward and backward. What lies above the highest tap gets no backward, and no forward when the student stops.

    With activation checkpointing (``recomputes``) whole layers that get a backward run forward once more.
    """
    reached = encoder_flops(config, needs, length)
    forward = reached if stops else config.num_hidden_layers * layer_flops(config, length)
    if recomputes:
        forward += needs.num_whole_layers(config.num_hidden_layers) * layer_flops(config, length)
    return forward + 2.0 * reached + 3.0 * head_flops(config, _head_positions(needs, length, num_masked))


def teacher_flops(config: PretrainedConfig, needs: Needs, length: int, num_masked: int) -> float:
    """Forward alone, up to the highest tap, with the head only where needed."""
    return encoder_flops(config, needs, length) + head_flops(config, _head_positions(needs, length, num_masked))


def cached_teacher_flops(
    config: PretrainedConfig, needs: Needs, length: int, num_masked: int, num_students: int
) -> tuple[float, float]:
    """With a teacher cache: (first visit of a window, each later one), docs/fairness.md, clause 14.

    Every visit makes the projections again; the first one also pays its share of what is kept.
    """
    wanted = sum(len(needs.relations(layer)) for layer in needs.attention_layers)
    again = wanted * projection_flops(config, length)
    return again + teacher_flops(config, kept_needs(needs), length, num_masked) / num_students, again


def sequence_cost(
    objective: Objective,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    study: StudyRecipe,
) -> SequenceCost:
    """One training sequence of ``study`` under ``objective``."""
    length, num_masked = study.data.sequence_length, num_masked_positions(study)
    training, cache = study.training, study.teacher.cache if study.teacher else None
    needs = objective.needs_teacher
    first = again = teacher_head = 0.0
    if teacher is not None and needs is not None:
        first = again = teacher_flops(teacher, needs, length, num_masked)
        teacher_head = head_flops(teacher, _head_positions(needs, length, num_masked))
        if cache is not None:
            refuse_dropout(objective.teacher_dropout)
            first, again = cached_teacher_flops(teacher, needs, length, num_masked, cache.num_students)
            teacher_head /= cache.num_students
    return SequenceCost(
        student=student_flops(
            student,
            objective.needs_student,
            length,
            num_masked,
            training.stop_at_last_tap,
            training.activation_checkpointing,
        ),
        teacher=first,
        loss=objective.flops(length, num_masked),
        teacher_again=again,
        student_head=3.0 * head_flops(student, _head_positions(objective.needs_student, length, num_masked)),
        teacher_head=teacher_head,
    )


def mean_cost(costs: list[SequenceCost], shares: list[float], budget: BudgetRecipe) -> SequenceCost:
    """The mean over a run's sequences, of phases that each have a share of the ``budget``.

    A share of a budget in tokens is a share of the sequences, and so is one of a calibrated budget, which is a number
    of steps. Of one in FLOPs it buys the fewer sequences the more they cost; of one in time as well, if time is taken
    to follow FLOPs.
    """
    charged = [
        sum(getattr(cost, name) for name in ("student", "teacher", "loss") if name in budget.charge) for cost in costs
    ]
    is_calibrated = budget.calibrate is not None or budget.calibrated is not None
    by_tokens = budget.unit == "tokens" or is_calibrated or not all(charged)
    weights = shares if by_tokens else [share / flops for share, flops in zip(shares, charged, strict=True)]

    def mean(name: str) -> float:
        values = [getattr(cost, name) for cost in costs]
        if len(set(values)) == 1:
            return float(values[0])
        return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

    return SequenceCost(**{field.name: mean(field.name) for field in fields(SequenceCost)})


def refuse_cache_of_phases(study: StudyRecipe, arm: str, num_phases: int) -> None:
    """A schedule cannot use a teacher cache: windows met in one phase would count as paid for in another."""
    if num_phases > 1 and study.teacher is not None and study.teacher.cache is not None:
        raise RecipeError(
            given=f"arm {arm!r} is a schedule, and the recipe has teacher.cache",
            expected="no cache: what a window costs at its first visit depends on the phase that meets it",
            fix="remove teacher.cache from the recipe, or the arm",
        )


def num_parameters(config: PretrainedConfig) -> int:
    """Parameters of a BERT-like masked-language model with a tied decoder (no pooler)."""
    width, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = (vocab + config.max_position_embeddings + config.type_vocab_size) * width + 2 * width
    head = width * width + width + 2 * width + vocab
    return embeddings + config.num_hidden_layers * layer + head


def teacher_config(study: StudyRecipe, vocab_size: int) -> PretrainedConfig | None:
    """The config of the study's teacher, given or to be trained; None when it has none."""
    if study.teacher is None:
        return None
    if study.teacher.train is not None:
        return student_config(study.teacher.train.encoder, vocab_size)
    assert study.teacher.path is not None
    return config_or_known(study.teacher.path, study.teacher.revision)


def num_masked_positions(study: StudyRecipe) -> int:
    """K, the masked positions per sequence: the fraction of the tokens between [CLS] and [SEP]."""
    return masking.num_masked(study.data.mask_fraction, study.data.sequence_length)


def arm_cost(study: StudyRecipe, arm: str, vocab_size: int) -> ArmCost:
    """FLOPs per token and parameters of ``arm``; of a schedule the mean over the budget.

    Raises:
        ModelError: the teacher's sizes cannot be known.
        RecipeError: what the arm needs of the teacher cannot be kept in the study's cache.
    """
    phases = schedule.phases_of(of_arm.parse_options(study.arms[arm], where=f"arms.{arm}"))
    student, teacher = student_config(study.student, vocab_size), teacher_config(study, vocab_size)
    refuse_cache_of_phases(study, arm, len(phases))
    shapes = shape_of(student), None if teacher is None else shape_of(teacher)
    objectives = [of_arm.build(phase.options, *shapes) for phase in phases]
    distils = any(objective.needs_teacher is not None for objective in objectives)
    if distils and teacher is None:
        raise ModelError(given=f"arm {arm!r} distils, but the recipe has no teacher", fix="add a 'teacher' section")
    length = study.data.sequence_length
    costs = [sequence_cost(objective, student, teacher, study) for objective in objectives]
    cost = mean_cost(costs, [phase.share for phase in phases], study.budget)
    return ArmCost(
        student_flops_per_token=cost.student / length,
        teacher_flops_per_token=cost.teacher / length,
        loss_flops_per_token=cost.loss / length,
        student_parameters=num_parameters(student),
        teacher_parameters=num_parameters(teacher) if teacher is not None and distils else 0,
        teacher_again_flops_per_token=cost.teacher_again / length,
        student_head_flops_per_token=cost.student_head / length,
        teacher_head_flops_per_token=cost.teacher_head / length,
    )


CHARGED_FLOPS = ("student", "teacher", "loss")


def charged_flops_per_token(recipe: StudyRecipe, cost: ArmCost, again: bool = False) -> float:
    """FLOPs per token that count towards the budget, at the first or (``again``) a later visit of a window."""
    parts = {name: getattr(cost, f"{name}_flops_per_token") for name in CHARGED_FLOPS}
    if again:
        parts["teacher"] = cost.teacher_again_flops_per_token
    return sum(flops for name, flops in parts.items() if name in recipe.budget.charge)
