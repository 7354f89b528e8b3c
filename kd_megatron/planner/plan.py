"""What a study will cost: sizes, FLOPs per token, tokens, steps and hours of its budget, memory, repetition.

FLOPs come from `engine.flops` (counted by hand, as the ledger charges them), memory from `engine.memory` (a micro-batch
of each arm, run on tensors without numbers), hours from `plan_speed`. How it is printed: `plan_view`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kd_megatron.data.pools import planned_pools
from kd_megatron.engine.batch_split import split
from kd_megatron.engine.build import DS_CONFIGS, read_ds_config
from kd_megatron.engine.flops import ArmCost, arm_cost, charged_flops_per_token, teacher_config
from kd_megatron.engine.memory import Memory, predict
from kd_megatron.engine.simulate import simulate_arm
from kd_megatron.errors import DataError, RecipeError
from kd_megatron.files.manifest import Manifest, read_manifest
from kd_megatron.machine.gpus import named_gpu
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.models.build import BERT_VOCABULARY
from kd_megatron.planner import plan_speed, plan_totals
from kd_megatron.planner.plan_arms import ArmPlan, Means, plan_arm
from kd_megatron.planner.plan_power import PowerPlan, plan_power
from kd_megatron.planner.plan_speed import Speed
from kd_megatron.planner.plan_totals import Item
from kd_megatron.recipe import CorpusRecipe, StudyRecipe, config
from kd_megatron.recipe.arms import resolve_arm
from kd_megatron.recipe.diff import Difference
from kd_megatron.study import fairness, tuning
from kd_megatron.study.budget_checks import require_enough
from kd_megatron.study.cells import GridPoint, cell_recipe, places
from kd_megatron.study.layout import reference_of


@dataclass(frozen=True)
class Hardware:
    """What to plan for beside the recipe: at most one of a named GPU and a file of the command calibrate."""

    gpu: str | None = None
    efficiency: float | None = None  # of the data sheet's rate; None: `plan_speed.EFFICIENCY`
    calibration: Path | None = None


@dataclass(frozen=True)
class CellPlan:
    """The students of one cell of a grid, or of the study whatever its grid."""

    place: GridPoint | None  # None: the study's own budget and pool
    pool_tokens: int | None  # tokens of one epoch
    arms: list[ArmPlan]
    totals: list[Item]


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
    speed: Speed | None
    cells: list[CellPlan]  # of a grid; none without
    totals: list[Item]
    power: PowerPlan | None  # None: nothing is compared

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``plan --json``."""
        as_dict = asdict(self) | {"recipe": self.recipe.model_dump(mode="json")}
        plans: list[Plan | CellPlan] = [self, *self.cells]
        for where, planned in zip([as_dict, *as_dict["cells"]], plans, strict=True):
            for arm, entry in zip(where["arms"], planned.arms, strict=True):
                arm["cost"]["total_flops_per_token"] = entry.cost.total_flops_per_token
        as_dict["memory"] = {
            name: {"arm": arm, **asdict(needed), "total": needed.total} for name, (arm, needed) in self.memory.items()
        }
        return as_dict


def plan(recipe: StudyRecipe, num_processes: int = 1, hardware: Hardware | None = None) -> Plan:
    """Plan ``recipe`` on ``num_processes`` processes; ``precision: auto`` as on the hardware, else on this machine.

    Raises:
        RecipeError: arms differ in more than the study allows, an objective's options are wrong, the budget is too
            small for a step or for the validations, or the hardware is not known.
        ModelError: the teacher's size cannot be known, or student and teacher do not fit.
        DataError: a pool of ``unique_tokens`` is larger than the text, or holds no window.
    """
    hardware = hardware or Hardware()
    allowed = fairness.check(recipe)
    tuning.check(recipe)
    gpu = named_gpu(hardware.gpu) if hardware.gpu else None
    recipe = resolve_precision(recipe, gpu)
    manifests = _manifests(recipe)
    vocab_size, source = _vocabulary(recipe, manifests)
    pool = _pool_tokens(recipe, manifests)
    resolved = _resolved(recipe)
    for one in resolved.values():
        split(one.training, num_processes)  # refuses a batch that so many processes cannot share
    costs = {arm: arm_cost(resolved[arm], arm, vocab_size) for arm in recipe.arms}
    speed = _speed(hardware, resolved, costs, num_processes)
    means = Means(speed, num_processes, pool)
    whole = _cell(recipe, None, costs, manifests, vocab_size, means)
    cells = [_cell(recipe, place, costs, manifests, vocab_size, means) for place in places(recipe)]
    totals = plan_totals.before_students(recipe, resolved, costs, vocab_size, means)
    totals += plan_totals.joined([cell.totals for cell in cells or [whole]])
    totals += plan_totals.of_controls(recipe, vocab_size, means)
    memory = _memory(resolved, num_processes, vocab_size)
    heads = [arm for arm, cost in costs.items() if cost.student_head_flops_per_token > 0]
    found = (recipe, whole.arms, vocab_size, source, pool, memory, num_processes, allowed, speed, cells, totals)
    return Plan(*found, plan_power(recipe, heads))


def _resolved(recipe: StudyRecipe) -> dict[str, StudyRecipe]:
    """Each arm's recipe, less what its trials are charged."""
    charged = tuning.less_trials(recipe)
    return {arm: resolve_arm(charged, arm) for arm in recipe.arms}


def _speed(
    hardware: Hardware, resolved: Mapping[str, StudyRecipe], costs: Mapping[str, ArmCost], num_processes: int
) -> Speed | None:
    if hardware.gpu and hardware.calibration:
        raise RecipeError(
            given=f"--hardware {hardware.gpu} and --calibration {hardware.calibration}",
            expected="one source of speed: a data sheet, or a measurement",
            fix="leave one of them out",
        )
    if hardware.efficiency is not None and not hardware.gpu:
        raise RecipeError(
            given=f"--efficiency {hardware.efficiency:g} without --hardware",
            expected="the GPU whose data sheet it is a share of",
            fix="add such as --hardware h100",
        )
    if hardware.calibration:
        return plan_speed.of_calibration(hardware.calibration, resolved, costs, num_processes)
    if hardware.gpu:
        efficiency = plan_speed.EFFICIENCY if hardware.efficiency is None else hardware.efficiency
        precision = next(iter(resolved.values())).training.precision
        return plan_speed.of_data_sheet(named_gpu(hardware.gpu), precision, efficiency, num_processes)
    return None


def _cell(
    recipe: StudyRecipe,
    place: GridPoint | None,
    costs: Mapping[str, ArmCost],
    manifests: list[Manifest] | None,
    vocab_size: int,
    means: Means,
) -> CellPlan:
    """What the budget of one cell (None: the study's own) buys, and what its students cost."""
    recipe = cell_recipe(recipe, place) if place else recipe
    resolved = _resolved(recipe)
    own = replace(means, pool=_pool_tokens(recipe, manifests))
    for arm, one in resolved.items():
        known = own.speed.tokens_per_second(arm, costs[arm]) if own.speed else None
        require_enough(one, arm, charged_flops_per_token(one, costs[arm]), known, own.num_devices)
    reference = costs[reference_of(recipe)]
    arms = [plan_arm(resolved[arm], arm, cost, reference, own) for arm, cost in costs.items()]
    return CellPlan(place, own.pool, arms, plan_totals.of_students(recipe, resolved, arms, vocab_size, own))


def _memory(resolved: dict[str, StudyRecipe], num_processes: int, vocab_size: int) -> dict[str, tuple[str, Memory]]:
    """For each ds_config, the arm that needs most."""
    held = {arm: simulate_arm(recipe, arm, vocab_size, num_processes) for arm, recipe in resolved.items()}

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
    """Tokens that one epoch processes; None where that is not known, or each of several sources has its own."""
    if manifests is None:
        return None
    pools = planned_pools(recipe.data, manifests)
    return pools[0] * recipe.data.sequence_length or None if len(pools) == 1 else None
