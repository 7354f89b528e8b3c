"""Builds a run: every check that can fail comes before the first step is paid for."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kd_megatron.console.logs import say
from kd_megatron.data.loader import Loader
from kd_megatron.engine import checkpoint
from kd_megatron.engine.batch_split import split
from kd_megatron.engine.build import Engine
from kd_megatron.engine.flops import SequenceCost, mean_cost, refuse_cache_of_phases, sequence_cost
from kd_megatron.engine.partition import PartitionedModel
from kd_megatron.engine.saving import CheckpointWriter
from kd_megatron.errors import ModelError
from kd_megatron.files.records import MetricsWriter
from kd_megatron.ledger import Ledger
from kd_megatron.machine.memory import MemoryMeter
from kd_megatron.models import float8
from kd_megatron.models.build import (
    DTYPES,
    build_student,
    check_same_vocabulary,
    load_teacher,
    model_config,
    shape_of,
)
from kd_megatron.models.initialise import initialise
from kd_megatron.models.taps import Execution, TappedEncoder, plain_attention
from kd_megatron.objectives import of_arm
from kd_megatron.objectives.base import Objective
from kd_megatron.objectives.schedule import phases_of
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.tensors import Batch
from kd_megatron.training.cached_teacher import CachedTeacher, open_cached_teacher
from kd_megatron.training.compile_ahead import compile_ahead
from kd_megatron.training.phases import PhasePosition
from kd_megatron.training.probe import FirstHead
from kd_megatron.training.schedule import Branch
from kd_megatron.training.step import Step, StudentWithObjective
from kd_megatron.training.teacher import Teacher
from kd_megatron.training.validate import Validation

CHECKPOINTS = "checkpoints"
FRACTION = "budget_fraction"  # of a checkpoint's state


@dataclass
class FractionsPassed:
    """How many of the recipe's marks of the budget a run has dealt with; a checkpoint holds it."""

    validations_done: int = 0  # of validation.at
    checkpoints_kept: int = 0  # of training.keep_at


@dataclass
class Run:
    """One arm at one seed, ready to train."""

    study: StudyRecipe
    arm: str
    seed: int
    directory: Path
    device: torch.device
    loader: Loader
    begins_from: str | None  # directory of the checkpoint that first weights are of
    module: StudentWithObjective
    engine: Engine
    step: Step
    ledger: Ledger
    validation: Validation
    first_head: FirstHead  # of the first weights, where every probe begins
    metrics: MetricsWriter
    cost: SequenceCost
    num_parameters: int
    checkpoints: CheckpointWriter
    markers: FractionsPassed
    meter: MemoryMeter
    place: PhasePosition
    mean_cost: SequenceCost  # over the phases
    trains_head: list[bool]  # of each phase, whether it trains the MLM head
    branch: Branch | None = None

    @property
    def until(self) -> float:
        """The fraction of the budget at which the run ends."""
        return 1.0 if self.branch is None else self.branch.end

    @property
    def phase_until(self) -> float:
        """The fraction of the budget at which this objective's training ends: the run's, or that of a phase of it."""
        return min(self.until, self.place.until)

    @property
    def objective(self) -> Objective:
        """The arm's objective."""
        return self.module.objective

    @property
    def has_trained_head(self) -> bool:
        """Whether the MLM head was trained by the newest step: before a phase's first one, by the phase before."""
        return self.trains_head[self.place.trained_last]

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of ``step``: a contiguous stretch of the global batch, whatever the split."""
        mine = split(self.study.training, dist.world_size())
        first = step * self.study.training.global_batch_size + dist.rank() * mine.count * mine.size
        batches: list[Batch] = [self.loader.batch(first + n * mine.size, mine.size) for n in range(mine.count)]
        teacher = self.step.teacher
        if isinstance(teacher, CachedTeacher):
            batches = [teacher.look_up(batch) for batch in batches]
        return [batch.pinned() for batch in batches] if self.device.type == "cuda" else batches

    def charged_seconds(self) -> float:
        """Wall-clock seconds of the accounts that count towards the budget."""
        return self.ledger.seconds(*self.study.budget.charge)

    def spent(self) -> dict[str, float]:
        """The first columns of every row of ``metrics.jsonl``."""
        return {
            "step": self.ledger.steps,
            "tokens": self.ledger.tokens,
            "flops": self.ledger.flops(*self.study.budget.charge),
            "hours": self.charged_seconds() / 3600.0,
        }

    def state(self, fraction: float) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimizer; ``fraction`` of the budget is spent."""
        return {
            FRACTION: fraction,
            "ledger": self.ledger.to_dict(),
            "markers": asdict(self.markers),
            "metrics_rows": self.metrics.num_rows,
            **self.place.state(fraction, self.meter.peak_bytes),
        }

    def close(self) -> None:
        """Close files and free what the engine holds; a run is not used after this."""
        self.checkpoints.close()
        self.metrics.close()
        self.engine.close()
        if self.step.teacher is not None:
            self.step.teacher.close()


def prepare_run(
    study: StudyRecipe, arm: str, seed: int, directory: Path, teacher_path: str | None, branch: Branch | None = None
) -> Run:
    """Load data and models, check that they fit, build the engine and resume from the newest good checkpoint."""
    device = dist.initialise()
    meter = MemoryMeter(device)
    loader = Loader(study.data, seed)
    phases = phases_of(of_arm.parse_options(study.arms[arm], where=f"arms.{arm}"))
    refuse_cache_of_phases(study, arm, len(phases))
    start = _start(directory / CHECKPOINTS, branch)
    place = PhasePosition.resumed(phases, start[1].run if start else {})
    student = build_student(study.student, loader.vocab_size, special_ids(loader), seed)
    begins_from = initialise(student, study.student.initialise, teacher_path)
    if begins_from is not None:
        check_same_vocabulary(begins_from, loader.tokenizer_sha256, ", ".join(s.path for s in study.data.shards))

    first_head = FirstHead.of(student)
    teacher_config = model_config(teacher_path) if teacher_path is not None else None
    shapes = shape_of(student.config), None if teacher_config is None else shape_of(teacher_config)
    each = [of_arm.build(phase.options, *shapes) for phase in phases]
    costs = [sequence_cost(objective, student.config, teacher_config, study) for objective in each]
    torch.manual_seed(seed)  # of the objective's own parameters
    objective = of_arm.build(place.options, *shapes)
    teacher = _teacher(study, objective, teacher_path, loader, device)
    cache = study.teacher.cache if study.teacher else None

    ledger = Ledger(num_devices=dist.world_size())
    if device.type == "cuda" and study.budget.splits_training_time:
        ledger.settle_with(torch.cuda.synchronize)
    kept = teacher
    if teacher is not None and cache is not None:
        kept = open_cached_teacher(teacher, study, objective, teacher_path, loader, ledger)
    runs = replace(execution(study), recompute=study.training.activation_checkpointing)
    encoder = TappedEncoder(student, objective.needs_student, whole=not study.training.stop_at_last_tap, execution=runs)
    module = StudentWithObjective(encoder, objective, ledger)
    num_parameters = sum(parameter.numel() for parameter in student.parameters())  # before ZeRO-3 partitions them
    with ledger.uncharged():
        untrained = freeze_untrained(module.to(device), teacher, loader.batch(0, 2).to(device))
    place.enter(untrained, 0 if teacher is None else teacher.num_parameters)
    engine = Engine(module, study.training, read_directly=module.student.read_directly())
    compile_ahead(module, engine, kept, loader.batch(0, split(study.training, dist.world_size()).size), ledger)
    resumed = _resume(engine, ledger, study, start, place, branch)
    checkpoint.tidy(directory / CHECKPOINTS, 0 if start is None or _leaves(start, branch) else ledger.steps)
    metrics = MetricsWriter(directory, resumed.get("metrics_rows", 0), study.training.tensorboard)
    return Run(
        meter=meter,
        branch=branch,
        study=study,
        arm=arm,
        seed=seed,
        directory=directory,
        device=device,
        loader=loader,
        begins_from=begins_from,
        module=module,
        engine=engine,
        step=Step(engine, objective, kept, ledger),
        ledger=ledger,
        validation=Validation(study.data, study.validation, device, study.training.precision == "bf16"),
        first_head=first_head,
        metrics=metrics,
        place=place,
        cost=costs[place.number],
        mean_cost=mean_cost(costs, [phase.share for phase in phases], study.budget),
        trains_head=[objective.needs_student.head for objective in each],
        num_parameters=num_parameters,
        checkpoints=CheckpointWriter(directory / CHECKPOINTS, study.training.keep_checkpoints, (metrics.path,)),
        markers=FractionsPassed(**resumed.get("markers", {})),
    )


def special_ids(loader: Loader) -> dict[str, int]:
    """The special token ids that a Hugging Face config names."""
    special = loader.special
    return {"pad_token_id": special.pad_id, "bos_token_id": special.cls_id, "eos_token_id": special.sep_id}


def execution(study: StudyRecipe) -> Execution:
    """How the layers of student and teacher run."""
    return Execution(study.training.attention, study.training.is_compiled)


def _teacher(
    study: StudyRecipe, objective: Objective, path: str | None, loader: Loader, device: torch.device
) -> Teacher | None:
    if objective.needs_teacher is None:
        return None
    if path is None or study.teacher is None:
        raise ModelError(
            given=f"objective {objective.options.objective!r} distils, but the recipe has no teacher",
            expected="a 'teacher' section with 'path' or 'train'",
            fix="add one",
        )
    check_same_vocabulary(path, loader.tokenizer_sha256, ", ".join(s.path for s in study.data.shards))
    dtype = DTYPES[study.teacher.precision]
    on = torch.device("cpu") if study.teacher.partition else device  # pieces go to the device one by one
    encoder = load_teacher(path, dtype, objective.needs_teacher, on, execution(study))
    if study.teacher.partition:
        return Teacher(encoder, PartitionedModel(encoder.model), objective.teacher_dropout)
    if study.teacher.precision == "fp8":
        errors = float8.convert(encoder, loader.batch(0, 2).to(device))
        say(
            f"teacher in float8: its taps differ from the bfloat16 teacher's by {errors.used:.1%} at most, "
            f"{errors.sums_in_float32:.1%} if products were summed in float32"
        )
        return Teacher(encoder, dropout=objective.teacher_dropout, float8_errors=errors)
    return Teacher(encoder, dropout=objective.teacher_dropout)


@torch.compiler.set_stance("force_eager")  # nothing is compiled for the size of a batch that comes once
def freeze_untrained(module: StudentWithObjective, teacher: Teacher | None, batch: Batch) -> list[str]:
    """Freeze the parameters that the objective gives no gradient, and name them.

    They are found by one small forward and backward. Left in the optimizer they would still decay, and some ZeRO
    configurations would apply a stale gradient to them; frozen, they keep their first values, in bf16
    as that rounds them.
    """
    inputs = module.objective.options.inputs
    # Weights are float32 here, which flash-attn does not take; which of them get a gradient does not hang on it.
    with plain_attention(module.student, *([] if teacher is None else [teacher.encoder])):
        sums = module(batch, None if teacher is None else teacher(batch, inputs))
        torch.stack([sums[term] * module.objective.weights[term] for term in sums]).sum().backward()
    untrained = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in set(untrained))
    module.zero_grad(set_to_none=True)
    return untrained


Start = tuple[Path, checkpoint.About]


def _start(directory: Path, branch: Branch | None) -> Start | None:
    """The checkpoint to go on from: the newest good one, or where a branch leaves its run; None: at the beginning."""
    newest = checkpoint.newest(directory)
    if newest is None and branch is not None:
        return branch.checkpoint, checkpoint.read(branch.checkpoint)
    return newest


def _leaves(start: Start, branch: Branch | None) -> bool:
    """Whether ``start`` is another run's checkpoint, which a branch leaves."""
    return branch is not None and start[0] == branch.checkpoint


def _resume(
    engine: Engine, ledger: Ledger, study: StudyRecipe, start: Start | None, place: PhasePosition, branch: Branch | None
) -> dict[str, Any]:
    """Restore engine and ledger from ``start``; returns the `Run.state` to go on with, empty at the beginning.

    Another run's marks of the budget are no affair of a branch.
    """
    if start is None:
        return {}
    path, about = start
    checkpoint.load(engine, path, about, place.crosses)
    ledger.restore(about.run["ledger"])
    where = f"{path} at step {ledger.steps}, {ledger.tokens:,} tokens"
    if branch is not None and _leaves(start, branch):
        say(f"a branch of {where}, to {100 * branch.end:g} % of the budget")
        return {"markers": asdict(FractionsPassed(len(study.validation.at), len(study.training.keep_at)))}
    if place.crosses:
        say(f"{place.in_words}: from {where}")
    else:
        say(f"resumed from {where}{_moved(engine, about)}")
    return about.run


def _moved(engine: Engine, about: checkpoint.About) -> str:
    """What to say of a checkpoint that was written by other processes than these."""
    before, now = (about.world_size, about.zero_stage), (dist.world_size(), engine.zero_stage)
    if before == now:
        return ""
    return f"; written by {before[0]} processes at ZeRO stage {before[1]}, here {now[0]} at stage {now[1]}"
