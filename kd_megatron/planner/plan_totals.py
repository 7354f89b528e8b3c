"""What a whole study costs beside the training of one student: teacher, validations, fine-tuning.

Counted by hand like the training itself (`engine.flops`). Fine-tuning is an upper bound: every batch is taken to be
padded to ``max_length``, while the real ones end with their longest row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from kd_megatron.console import units
from kd_megatron.console.units import num_seeds
from kd_megatron.engine.flops import (
    ArmCost,
    arm_cost,
    encoder_flops,
    head_flops,
    num_masked_positions,
    teacher_config,
)
from kd_megatron.finetune.grid import halving
from kd_megatron.finetune.tasks.embedded import NUM_DEV, NUM_TRAIN
from kd_megatron.finetune.tasks.glue import GLUE
from kd_megatron.models.build import student_config
from kd_megatron.planner.plan_arms import ArmPlan, Means, plan_arm
from kd_megatron.recipe import FinetuneRecipe, StudyRecipe, TaskRecipe, TuningRecipe
from kd_megatron.recipe.controls import TEACHER, UNTRAINED
from kd_megatron.study import extension
from kd_megatron.tensors import Needs
from kd_megatron.training.run import TEACHER_ARM, teacher_study
from kd_megatron.training.validate import SLICE

USUAL_PASSES = 5  # of a probe over its states before it has converged; how many it takes is not known before


@dataclass(frozen=True)
class Item:
    """One part of a study's cost. None: not known."""

    what: str
    flops: float | None
    hours: float | None
    note: str = ""


def before_students(
    recipe: StudyRecipe,
    resolved: Mapping[str, StudyRecipe],
    costs: Mapping[str, ArmCost],
    vocab_size: int,
    means: Means,
) -> list[Item]:
    """What is done once, whatever the number of cells: the teacher, and the trials of tuning.

    Both are validated: the teacher where students are, a trial at its end. Trials beyond the edges of what the recipe
    tries are in the note alone: nobody knows before whether there will be any.
    """
    found, validations, notes = [], [], []
    if recipe.teacher and recipe.teacher.train:
        alone = teacher_study(recipe)
        cost, places = arm_cost(alone, TEACHER_ARM, vocab_size), _num_validations(alone)
        planned = plan_arm(alone, TEACHER_ARM, cost, cost, means)
        found.append(Item(TEACHER_ARM, planned.flops, planned.hours, "trained first"))
        validations.append(places * _validation_flops(alone, cost, vocab_size))
        notes.append(f"{places} of the teacher")
    if recipe.tuning is not None:
        num_trials = recipe.tuning.num_trials(next(iter(costs)))  # every arm has as many
        item = _tuning(recipe.tuning, resolved, costs, num_trials, means)
        if (most := extension.most_trials(recipe)) > num_trials:
            beyond = _tuning(recipe.tuning, resolved, costs, most, means)
            spent = "" if beyond.flops is None else f" ({units.flops(beyond.flops)} FLOPs)"
            item = replace(item, note=f"{item.note}; at most {most * len(costs)}{spent}, if best values lie at edges")
        found.append(item)
        once = [_validation_flops(resolved[arm], cost, vocab_size) for arm, cost in costs.items()]
        num_runs = num_trials * recipe.tuning.num_seeds
        validations += [num_runs * flops for flops in once]
        notes.append(f"{num_runs * len(costs)} of trials")
    if validations:
        found.append(_item("validations before", math.fsum(validations), ", ".join(notes), means))
    return found


def _tuning(
    tuning: TuningRecipe,
    resolved: Mapping[str, StudyRecipe],
    costs: Mapping[str, ArmCost],
    num_trials: int,
    means: Means,
) -> Item:
    """The trials' training, ``num_trials`` of them for each arm, each with every seed of tuning."""
    flops, hours = [], []
    for arm, cost in costs.items():
        alone = resolved[arm].model_copy(update={"budget": tuning.budget})
        trial = plan_arm(alone, arm, cost, cost, means)
        flops.append(_times(num_trials * tuning.num_seeds, trial.flops))
        hours.append(_times(num_trials * tuning.num_seeds, trial.hours))
    each = f" of {num_seeds(tuning.num_seeds)} each" if tuning.num_seeds > 1 else ""
    return Item("tuning", _all_of(flops), _all_of(hours), f"{num_trials * len(costs)} trials{each}")


def of_students(
    recipe: StudyRecipe, resolved: Mapping[str, StudyRecipe], arms: Sequence[ArmPlan], vocab_size: int, means: Means
) -> list[Item]:
    """What students cost, all arms and seeds of one study or cell together; ``resolved`` are the arms' own recipes."""
    seeds = len(recipe.seeds)
    num_students = len(arms) * seeds
    flops, hours = (_all_of([getattr(entry, kind) for entry in arms], seeds) for kind in ("flops", "hours"))
    found = [Item("students", flops, hours, f"{num_students} runs")]
    branches = recipe.markers.branches if recipe.markers else []
    if recipe.markers and branches:
        more = sum(fraction - recipe.markers.start(fraction) for fraction in branches)
        note = f"{len(branches)} a student, from its checkpoints"
        found.append(Item("branches", _times(more, flops), _times(more, hours), note))
    once = [_validation_flops(resolved[entry.arm], entry.cost, vocab_size) for entry in arms]
    places = _num_validations(recipe) + len(branches)
    found.append(_item("validations", seeds * places * sum(once), f"{places} a student", means))
    if recipe.finetune:
        tuned = 1 + len(branches) * bool(recipe.markers and recipe.markers.finetune)
        grid, unknown = finetune_flops(recipe.finetune, student_config(recipe.student, vocab_size))
        missing = f"; without {', '.join(unknown)}, of unknown size" if unknown else ""
        note = f"at most: rows of max_length{missing}"
        found.append(_item("fine-tuning", num_students * tuned * grid, note, means))
    return found


def of_controls(recipe: StudyRecipe, vocab_size: int, means: Means) -> list[Item]:
    """The untrained student and the teacher, validated once and fine-tuned; made once, whatever the number of cells."""
    total, notes = 0.0, []
    for name in recipe.wanted_controls:
        config = student_config(recipe.student, vocab_size) if name == UNTRAINED else teacher_config(recipe, vocab_size)
        assert config is not None
        total += _validation_flops_of(recipe, config, trains_head=True)
        section = recipe.finetune
        if section is not None:
            seeds = section.seeds if name == UNTRAINED else section.seeds[:1]
            total += finetune_flops(section.model_copy(update={"seeds": seeds}), config)[0]
        notes.append({UNTRAINED: "the untrained student", TEACHER: "the teacher"}[name])
    return [_item("controls", total, f"at most: {' and '.join(notes)}", means)] if notes else []


def joined(cells: Sequence[Sequence[Item]]) -> list[Item]:
    """The items of all cells, those of one kind added up."""
    if len(cells) == 1:
        return list(cells[0])
    found = []
    for same in zip(*cells, strict=True):
        flops, hours = (_all_of([getattr(item, kind) for item in same]) for kind in ("flops", "hours"))
        found.append(Item(same[0].what, flops, hours, f"{len(same)} cells, each: {same[0].note}"))
    return found


def _item(what: str, flops: float, note: str, means: Means) -> Item:
    return Item(what, flops, None if means.speed is None else means.speed.hours(flops), note)


def _times(number: float, amount: float | None) -> float | None:
    return None if amount is None else number * amount


def _all_of(parts: Sequence[float | None], times: int = 1) -> float | None:
    known = [part for part in parts if part is not None]
    return times * math.fsum(known) if len(known) == len(parts) else None


def _num_validations(recipe: StudyRecipe) -> int:
    """Of one run, which always ends with one."""
    return len({*recipe.validation.at, 1.0})


def _validation_flops(recipe: StudyRecipe, cost: ArmCost, vocab_size: int) -> float:
    """One validation of a student."""
    return _validation_flops_of(
        recipe, student_config(recipe.student, vocab_size), trains_head=cost.student_head_flops_per_token > 0
    )


def _validation_flops_of(recipe: StudyRecipe, config: PretrainedConfig, trains_head: bool) -> float:
    """One validation: the probe's frozen states and its usual passes over them, then the held-out samples."""
    length, num_masked = recipe.data.sequence_length, num_masked_positions(recipe)
    forward = _whole(config, length)
    head = head_flops(config, num_masked)
    share = 1.0 / SLICE  # more windows, which say when it has converged
    probe = recipe.validation.probe_windows * ((1.0 + share) * forward + USUAL_PASSES * (3.0 + share) * head)
    return probe + recipe.validation.num_samples * (forward + head * (2 if trains_head else 1))


def finetune_flops(recipe: FinetuneRecipe, config: PretrainedConfig) -> tuple[float, list[str]]:
    """(FLOPs of one student's grid at most, tasks whose size is not known and not in it)."""
    num_settings, num_seeds = recipe.grid.num_settings, len(recipe.seeds)
    num_runs = halving.num_runs(num_settings, num_seeds) if recipe.halving else num_settings * num_seeds
    forward = _whole(config, recipe.max_length)
    total, unknown = 0.0, []
    for task in recipe.tasks:
        sizes = task_sizes(task)
        if sizes is None:
            unknown.append(task.name)
            continue
        num_train, num_dev = sizes
        total += num_runs * forward * (3.0 * _rows_seen(recipe, num_train) + num_dev)
    return total, unknown


def _rows_seen(recipe: FinetuneRecipe, num_train: int) -> float:
    """Training rows that one cell sees, repeats counted, mean over batch sizes."""
    floors = [(recipe.min_steps or 0) * size for size in sorted({*recipe.grid.batch_sizes})]
    return math.fsum(max(recipe.epochs * num_train, floor) for floor in floors) / len(floors)


def task_sizes(task: TaskRecipe) -> tuple[int, int] | None:
    """(training rows, dev rows) after the recipe's caps; None for own data, whose files are not read."""
    known = GLUE.get(task.name) if task.is_glue else None
    if known is None and not task.is_embedded:
        return None
    num_train, num_dev = (known.num_train[0], sum(known.num_dev.values())) if known else (NUM_TRAIN, NUM_DEV)
    return min(num_train, task.max_train_examples or num_train), min(num_dev, task.max_dev_examples or num_dev)


def _whole(config: PretrainedConfig, length: int) -> float:
    """All layers, forward."""
    return encoder_flops(config, Needs(hidden=(config.num_hidden_layers,)), length)
