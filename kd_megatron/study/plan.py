"""What a study will cost: sizes, FLOPs per token, tokens and steps that the budget buys, memory, repetition.

FLOPs come from `engine.flops` (counted by hand, as the ledger charges them), memory from `engine.memory` (a micro-batch
of each arm, run on tensors without numbers).
"""

import math
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from kd_megatron import config
from kd_megatron.engine.build import DS_CONFIGS, read_ds_config
from kd_megatron.engine.flops import ArmCost, arm_cost, teacher_config
from kd_megatron.engine.memory import Memory, predict
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.errors import DataError, RecipeError
from kd_megatron.hardware import resolve_precision
from kd_megatron.manifest import Manifest, read_manifest
from kd_megatron.schema import CorpusRecipe, StudyRecipe, TeacherCacheRecipe
from kd_megatron.study import fairness, words
from kd_megatron.study.answer import budget_in_words, num_seeds
from kd_megatron.study.fairness import Difference
from kd_megatron.study.results import PREFERRED_REFERENCE, objective_in_words

GIB = 2**30
BERT_VOCABULARY = 30_522
CHARGED_FLOPS = ("student", "teacher", "loss")


@dataclass(frozen=True)
class ArmPlan:
    """One arm under its budget; tokens and steps are None when only the machine's speed can tell."""

    arm: str
    objective: str
    cost: ArmCost
    charged_flops_per_token: float  # at the first visit of a window
    tokens: float | None
    steps: int | None
    epochs: float | None
    relative_tokens: float | None  # to the reference arm at equal FLOPs


@dataclass(frozen=True)
class Plan:
    """A whole study, planned."""

    recipe: StudyRecipe
    arms: list[ArmPlan]
    vocab_size: int
    vocab_source: str
    pool_tokens: int | None  # tokens of one epoch, None before the data is prepared
    memory: dict[str, tuple[str, Memory]]  # ds_config -> the arm that needs most, and what one of its processes needs
    num_processes: int
    allowed: list[Difference]


def plan(recipe: StudyRecipe, num_processes: int = 1) -> Plan:
    """Plan ``recipe`` on ``num_processes`` processes; ``precision: auto`` as on this machine.

    Raises:
        RecipeError: arms differ in more than the study allows, or an objective's options are wrong.
        ModelError: the teacher's size cannot be known, or student and teacher do not fit.
    """
    allowed = fairness.check(recipe)
    recipe = resolve_precision(recipe)
    manifests = _manifests(recipe)
    vocab_size, source = _vocabulary(recipe, manifests)
    pool = _pool_tokens(recipe, manifests)
    resolved = {arm: fairness.resolve_arm(recipe, arm) for arm in recipe.arms}
    costs = {arm: arm_cost(resolved[arm], arm, vocab_size) for arm in recipe.arms}
    reference = costs.get(PREFERRED_REFERENCE, next(iter(costs.values())))
    arms = [_plan_arm(resolved[arm], arm, cost, reference, pool) for arm, cost in costs.items()]
    memory = _memory(resolved, num_processes, vocab_size)
    return Plan(recipe, arms, vocab_size, source, pool, memory, num_processes, allowed)


def _plan_arm(recipe: StudyRecipe, arm: str, cost: ArmCost, reference: ArmCost, pool: int | None) -> ArmPlan:
    charged = charged_flops_per_token(recipe, cost)
    saved = charged - charged_flops_per_token(recipe, cost, again=True)
    tokens_per_step = recipe.training.global_batch_size * recipe.data.sequence_length
    steps = steps_afforded(recipe, charged, tokens_per_step, saved, pool)
    tokens = None if steps is None else float(steps * tokens_per_step)
    epochs = tokens / pool if tokens is not None and pool else None
    return ArmPlan(
        arm=arm,
        objective=objective_in_words(recipe, arm),
        cost=cost,
        charged_flops_per_token=charged,
        tokens=tokens,
        steps=steps,
        epochs=epochs,
        relative_tokens=reference.total_flops_per_token / cost.mean_flops_per_token(epochs or 1.0),
    )


def charged_flops_per_token(recipe: StudyRecipe, cost: ArmCost, again: bool = False) -> float:
    """FLOPs per token that count towards the budget, at the first or (``again``) a later visit of a window."""
    parts = {name: getattr(cost, f"{name}_flops_per_token") for name in CHARGED_FLOPS}
    if again:
        parts["teacher"] = cost.teacher_again_flops_per_token
    return sum(flops for name, flops in parts.items() if name in recipe.budget.charge)


def steps_afforded(
    recipe: StudyRecipe, charged: float, tokens_per_step: int, saved: float = 0.0, pool: int | None = None
) -> int | None:
    """Optimizer steps until the budget is used up (the last one may overshoot); None for budgets in time.

    Args:
        recipe: has the budget.
        charged: FLOPs per token of the first ``pool`` tokens.
        tokens_per_step: of the global batch.
        saved: FLOPs per token by which later tokens, all repeats, are cheaper.
        pool: tokens of an epoch; None when it is not known: nothing is taken to repeat.
    """
    budget = recipe.budget
    if budget.unit == "tokens":
        return math.ceil(budget.limit / tokens_per_step)
    if budget.unit == "flops" and charged > 0:
        tokens = budget.limit / charged
        if pool is not None and tokens > pool:
            tokens = pool + (budget.limit - pool * charged) / (charged - saved)
        return math.ceil(tokens / tokens_per_step)
    return None


def _memory(resolved: dict[str, StudyRecipe], num_processes: int, vocab_size: int) -> dict[str, tuple[str, Memory]]:
    """For each ds_config, the arm that needs most."""
    held = {arm: simulate_arm(recipe, arm, vocab_size) for arm, recipe in resolved.items()}

    def largest(ds_config: str) -> tuple[str, Memory]:
        needed = {arm: predict(resolved[arm], held[arm], ds_config, num_processes) for arm in resolved}
        return max(needed.items(), key=lambda entry: entry[1].total)

    read_ds_config(next(iter(resolved.values())).training.ds_config)  # there is such a file
    return {path.stem: largest(path.stem) for path in sorted(DS_CONFIGS.glob("*.json"))}


def _manifests(recipe: StudyRecipe) -> list[Manifest] | None:
    """The manifests of all shard sets, None when one is not prepared yet."""
    try:
        return [read_manifest(shards.path) for shards in recipe.data.shards]
    except DataError:
        return None


def _vocabulary(recipe: StudyRecipe, manifests: list[Manifest] | None) -> tuple[int, str]:
    if manifests:
        return manifests[0].vocab_size, "of the shards' tokenizer"
    try:
        corpus = config.load(recipe.data.corpus, CorpusRecipe) if recipe.data.corpus else None
    except RecipeError:
        corpus = None
    if corpus and corpus.tokenizer.train:
        return corpus.tokenizer.train.vocab_size, "that the corpus recipe trains"
    if recipe.teacher and recipe.teacher.path:
        given = teacher_config(recipe, BERT_VOCABULARY)
        return getattr(given, "vocab_size", BERT_VOCABULARY), "of the teacher, assumed: the data is not prepared yet"
    return BERT_VOCABULARY, "of bert-base-uncased, assumed: the data is not prepared yet"


def _pool_tokens(recipe: StudyRecipe, manifests: list[Manifest] | None) -> int | None:
    """Tokens that one epoch processes: each window holds [CLS], length - 2 tokens of the stream, and [SEP]."""
    if manifests is None:
        return None
    length = recipe.data.sequence_length
    windows = sum(manifest.tokens("train") for manifest in manifests) // (length - 2)
    if recipe.data.unique_tokens:
        windows = min(windows, recipe.data.unique_tokens // length)
    return windows * length or None


def show(planned: Plan, console: Console) -> None:
    """Print the plan."""
    recipe = planned.recipe
    console.print(f"[bold]{recipe.name}[/bold]  {recipe.description}".rstrip())
    first = planned.arms[0].cost
    teacher = max(entry.cost.teacher_parameters for entry in planned.arms)
    console.print(
        f"student {words.count(first.student_parameters)} parameters, "
        f"teacher {words.count(teacher) + ' parameters' if teacher else 'none'}, "
        f"vocabulary {planned.vocab_size:,} ({planned.vocab_source})"
    )
    runs = len(planned.arms) * len(recipe.seeds)
    each = budget_in_words(recipe.budget)
    seeds = num_seeds(len(recipe.seeds))
    console.print(f"budget {each} for each student; {len(planned.arms)} arms x {seeds} = {runs} students")
    if recipe.teacher and recipe.teacher.train:
        console.print(f"and {budget_in_words(recipe.teacher.train.budget)} for the teacher, trained first")
    console.print(_cost_table(planned))
    console.print(_tokens_table(planned))
    for line in _remarks(planned):
        console.print(line, style="dim")
    console.print(_memory_table(planned))


def _cost_table(planned: Plan) -> RichTable:
    table = _table("FLOPs per token, forward and backward", "arm", "student", "teacher", "loss", "total", "teacher %")
    cached = _cache(planned.recipe) is not None
    if cached:
        table.add_column("repeats", justify="right", no_wrap=True)
    for entry in planned.arms:
        cost = entry.cost
        flops = (cost.student_flops_per_token, cost.teacher_flops_per_token, cost.loss_flops_per_token)
        shown = (words.flops(value or None) for value in (*flops, cost.total_flops_per_token))
        share = f"{100 * cost.teacher_flops_per_token / cost.total_flops_per_token:.0f}"
        saved = cost.teacher_flops_per_token - cost.teacher_again_flops_per_token
        repeats = [words.flops(cost.total_flops_per_token - saved)] if cached else []
        table.add_row(entry.arm, *shown, share, *repeats)
    return table


def _cache(recipe: StudyRecipe) -> TeacherCacheRecipe | None:
    return recipe.teacher.cache if recipe.teacher else None


def _tokens_table(planned: Plan) -> RichTable:
    table = _table("What the budget buys", "arm", "steps", "tokens", "epochs", "tokens at equal FLOPs")
    for entry in planned.arms:
        steps = words.NOTHING if entry.steps is None else f"{entry.steps:,}"
        relative = words.ratio(entry.relative_tokens)
        table.add_row(entry.arm, steps, words.count(entry.tokens), words.ratio(entry.epochs), relative)
    return table


def _memory_table(planned: Plan) -> RichTable:
    processes = f"{planned.num_processes} process{'es' if planned.num_processes > 1 else ''}"
    title = f"Memory of each of {processes}, GiB, of the arm that needs most"
    table = _table(title, "ds_config", "weights", "Adam", "teacher", "engine", "step", "total", "host")
    for ds_config, (_, memory) in planned.memory.items():
        parts = (memory.weights, memory.optimizer, memory.teacher, memory.engine, memory.step, memory.total)
        host = words.NOTHING if not memory.host_bytes else f"{memory.host_bytes / GIB:.2f}"
        table.add_row(ds_config, *(f"{size / GIB:.2f}" for size in parts), host)
    return table


def _table(title: str, first: str, *others: str) -> RichTable:
    table = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _remarks(planned: Plan) -> list[str]:
    recipe, said = planned.recipe, []
    training = recipe.training
    arm, memory = planned.memory[training.ds_config]
    said.append(
        f"A step of {arm} at {training.ds_config}, as in the recipe, takes {memory.total / GIB:.2f} GiB of tensors at "
        "its height; a run on a GPU records what it took as memory.training_bytes in its summary.json."
    )
    if training.activation_checkpointing:
        said.append("Activation checkpointing: the student's FLOPs have the second forward pass of its layers.")
    if planned.arms[0].tokens is None:
        said.append(
            f"A budget in {recipe.budget.unit.replace('_', ' ')} buys tokens by the machine's speed, which is not "
            "known here; at equal FLOPs an arm sees the given share of the reference's tokens."
        )
    if planned.pool_tokens is None:
        said.append("The data is not prepared yet, so epochs are not known.")
    else:
        said.append(f"One epoch is {words.count(planned.pool_tokens)} tokens.")
    if cache := _cache(recipe):
        among = f", divided by {cache.num_students} students" if cache.num_students > 1 else ""
        said.append(
            f"Teacher outputs are kept in {cache.path}: the teacher's share is of a window's first visit{among}; "
            f"repeats cost the total of the last column. Masks are fixed (data.mask_seed {recipe.data.mask_seed})."
        )
    said += [
        f"Allowed difference between arms: {difference.key}: "
        + ", ".join(f"{arm} {value}" for arm, value in difference.values.items())
        for difference in planned.allowed
    ]
    return said
