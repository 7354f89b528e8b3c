"""Arms of a recipe on the fake GPU: one optimizer step of each, recorded and modelled."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.made_up import write_made_up
from benchmarks.model.fake_cuda import fake_cuda
from benchmarks.model.operations import Recorder
from benchmarks.model.rates import ModelledGpu
from benchmarks.model.step_model import OperationTime, fused, time_of
from benchmarks.steps.made_up_inputs import write_random_model
from kd_megatron.console.logs import progress_bar
from kd_megatron.data.loader import Loader
from kd_megatron.engine.build import read_ds_config
from kd_megatron.engine.flops import teacher_config
from kd_megatron.errors import RecipeError
from kd_megatron.files.manifest import MANIFEST, read_manifest
from kd_megatron.machine.precision import resolve_precision
from kd_megatron.models.build import BERT_VOCABULARY
from kd_megatron.recipe import ShardsRecipe, StudyRecipe
from kd_megatron.study.effective import run_recipe
from kd_megatron.training.timed_run import TimedRun

NUM_STEPS = 3  # for which there is data: one to make the optimizer's state, one to record, and one that is prepared


@dataclass(frozen=True)
class ModelledArm:
    """One optimizer step of an arm, modelled."""

    arm: str
    num_tokens: int
    flops: float  # matrix products of student and teacher by kd_megatron/engine/flops.py, those that MFU counts
    times: list[OperationTime]
    undeclared: list[str]  # Triton kernels without a declared cost
    precision: str
    gpu: ModelledGpu

    @property
    def seconds(self) -> float:
        """The step, modelled: operations one after the other."""
        return sum(time.seconds for time in self.times)

    @property
    def bound_seconds(self) -> float:
        """The step if it were matrix products alone, at the data sheet's rate."""
        return self.flops / self.gpu.gpu.flops(self.precision)

    @property
    def mfu(self) -> float:
        """Modelled: `bound_seconds` as a share of `seconds`."""
        return self.bound_seconds / self.seconds

    @property
    def num_launches(self) -> int:
        """Kernels that the host starts."""
        return sum(time.operation.launches for time in self.times)

    @property
    def teacher_seconds(self) -> float:
        """Of `seconds`, the teacher's forward."""
        return sum(time.seconds for time in self.times if time.operation.place.is_teacher)

    def by_part(self) -> Counter[str]:
        """Seconds of each part of the step."""
        found: Counter[str] = Counter()
        for time in self.times:
            found[time.operation.part] += time.seconds  # type: ignore[assignment]
        return found


def model_arms(recipe: StudyRecipe, gpu: ModelledGpu) -> list[ModelledArm]:
    """Model a step of every arm of ``recipe``. Joins the process group.

    Raises:
        RecipeError: the recipe asks for what is not modelled.
        EnvironmentFault: there is no fake GPU here.
    """
    _refuse(recipe)
    arms = []
    with made_up(resolve_precision(recipe, gpu.gpu)) as (study, teacher), progress_bar("arms") as bar:
        task = bar.add_task("modelling", total=len(study.arms), note="")
        for arm in study.arms:
            bar.update(task, note=arm)
            arms.append(_model(study, arm, teacher, gpu))
            bar.advance(task)
    return arms


def _refuse(recipe: StudyRecipe) -> None:
    zero = read_ds_config(recipe.training.ds_config).get("zero_optimization", {})
    teacher = recipe.teacher
    given = None
    if zero.get("stage", 0) == 3 or "offload_optimizer" in zero:
        given = f"training.ds_config {recipe.training.ds_config}: DeepSpeed reads the device there"
    elif teacher is not None and (teacher.cache is not None or teacher.partition):
        given = f"teacher.{'partition' if teacher.partition else 'cache'}"
    if given:
        raise RecipeError(
            given=f"bench model with {given}",
            expected="ZeRO stage 0 to 2, and a teacher that is whole and computes",
            fix="add training.ds_config=zero0, teacher.cache=null or teacher.partition=false to the command",
        )


@contextmanager
def made_up(recipe: StudyRecipe) -> Iterator[tuple[StudyRecipe, str | None]]:
    """The recipe on made-up data of its vocabulary's size, and a teacher of its sizes with random weights."""
    with tempfile.TemporaryDirectory() as own:
        tokens = NUM_STEPS * recipe.training.global_batch_size * recipe.data.sequence_length
        valid_tokens = 64 * recipe.data.sequence_length
        shards = write_made_up(Path(own) / "data", tokens + (1 << 16), valid_tokens, vocab_size=_vocab_size(recipe))
        changed = {"shards": [ShardsRecipe(path=str(shards))], "corpus": None, "unique_tokens": None}
        study = recipe.model_copy(update={"data": recipe.data.model_copy(update=changed)})
        loader = Loader(study.data, study.seeds[0])
        config = teacher_config(study, loader.vocab_size)
        path = None
        if config is not None:
            config.vocab_size = loader.vocab_size
            path = Path(own) / "teacher"
            write_random_model(config, loader.tokenizer_path, path)
        yield study, None if path is None else str(path)


def _vocab_size(recipe: StudyRecipe) -> int:
    """Of the recipe's shards where they are there, else BERT's."""
    places = [Path(shards.path) for shards in recipe.data.shards]
    return next((read_manifest(path).vocab_size for path in places if (path / MANIFEST).exists()), BERT_VOCABULARY)


def _model(study: StudyRecipe, arm: str, teacher: str | None, gpu: ModelledGpu) -> ModelledArm:
    own = run_recipe(study, arm, study.seeds[0])
    eager = own.model_copy(update={"training": own.training.model_copy(update={"compile": False})})
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as directory, fake_cuda() as fake:
        timed = TimedRun(eager, arm, Path(directory), teacher, num_warmup_steps=1)
        fake.observers.append(recorder.observe)
        fake.launch_observers.append(recorder.observe_launch)
        timed.step()
        cost, num_sequences = timed.run.cost, own.training.global_batch_size
        timed.close()
    operations = fused(recorder.operations) if own.training.compile else recorder.operations
    return ModelledArm(
        arm=arm,
        num_tokens=num_sequences * own.data.sequence_length,
        flops=num_sequences * (cost.student + cost.teacher_again),
        times=[time_of(operation, gpu) for operation in operations],
        undeclared=sorted(recorder.undeclared),
        precision=own.training.precision,
        gpu=gpu,
    )
