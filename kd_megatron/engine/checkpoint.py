"""Checkpoints that are complete or absent, and the newest good one (docs/checkpoints.md).

A checkpoint is written aside, its files are listed with size and sha256, and one rename publishes it: a process
killed at any moment leaves the previous checkpoint untouched. Files are safetensors and JSON: nothing is unpickled.
Tensors are whole and named as the module names them, so any ZeRO stage and any number of processes can read them.
Random numbers need no state, because every step seeds them from (run seed, step, rank).
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd_megatron.console.logs import warn
from kd_megatron.engine import state as engine_state
from kd_megatron.engine.build import Engine
from kd_megatron.engine.state import KINDS, WEIGHTS, EngineState
from kd_megatron.errors import DataError, RecipeError
from kd_megatron.files.manifest import file_sha256
from kd_megatron.ranks import dist
from kd_megatron.recipe import config
from kd_megatron.recipe.config import Strict

FORMAT = 1
LIST = "files.json"
STATE = "run_state.json"
TENSORS = {kind: f"{kind}.safetensors" for kind in KINDS}
OBJECTIVE = "objective."  # before the names of an objective's own parameters
WRITING, REMOVING, PASSED_OVER = ".writing_", ".removing_", "passed_over_"
DEEPSPEED = "engine"  # the directory in which versions before format 1 kept DeepSpeed's pickled files


class About(Strict):
    """What ``run_state.json`` says: where the checkpoint comes from, what fits it, and the run's own state."""

    format: int
    step: int
    num_updates: int  # Adam's step count
    world_size: int
    zero_stage: int
    precision: str
    parameters: dict[str, list[int]]  # name -> shape
    trained: list[str]  # those that have moments
    kept_for_good: bool
    run: dict[str, Any]


def describe(engine: Engine, state: EngineState, step: int, run_state: dict[str, Any], for_good: bool) -> About:
    """What there is to say of ``state``, taken of ``engine`` after ``step``."""
    return About(
        format=FORMAT,
        step=step,
        num_updates=state.num_updates,
        world_size=dist.world_size(),
        zero_stage=engine.zero_stage,
        precision=engine.recipe.precision,
        parameters=engine_state.shapes(engine),
        trained=engine_state.trained(engine),
        kept_for_good=for_good,
        run=run_state,
    )


def write(directory: Path, about: About, state: EngineState) -> Path:
    """Write and publish the checkpoint of ``state`` that ``about`` describes. Rank 0 alone, on any thread.

    Raises whatever the disk raises; nothing is left behind then.
    """
    final = directory / name_of(about.step)
    aside = directory / f"{WRITING}{final.name}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for kind, tensors in state.tensors.items():
            save_file(tensors, aside / TENSORS[kind])
        (aside / STATE).write_text(about.model_dump_json(indent=1), encoding="utf-8")
        _publish(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # gives back the room of a full disk; the checkpoints before it stay
        raise
    return final


def name_of(step: int) -> str:
    """The directory of a checkpoint."""
    return f"step_{step:08d}"


def _publish(aside: Path, final: Path) -> None:
    files = sorted(path for path in aside.iterdir() if path.is_file())
    listing = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files}
    (aside / LIST).write_text(json.dumps(listing, indent=1), encoding="utf-8")
    for path in [*files, aside / LIST, aside]:
        to_disk(path)
    if final.exists():
        remove(final)
    os.replace(aside, final)
    to_disk(final.parent)


def to_disk(path: Path) -> None:
    """Flush a file or directory to the device: a rename must not become durable before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a checkpoint so that, at any moment, it is whole or is none."""
    aside = path.with_name(REMOVING + path.name)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def published(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first, good or not."""
    return sorted(path for path in directory.glob("step_*") if path.is_dir())


def droppable(directory: Path, keep: int) -> list[Path]:
    """All but the newest ``keep`` checkpoints and those that are kept for good, oldest first."""
    found = published(directory)
    return [path for path in found[: max(0, len(found) - keep)] if not _is_for_good(path)]


def _is_for_good(path: Path) -> bool:
    try:
        return bool(json.loads((path / STATE).read_text(encoding="utf-8"))["kept_for_good"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def tidy(directory: Path, step: int) -> None:
    """Before a run goes on from ``step``: remove what dead runs left half-done, and set later checkpoints aside.

    Those were passed over. Left in place they would count among the newest ones, which are kept.
    """
    if not dist.is_main():
        return
    for unfinished in (WRITING, REMOVING):
        for path in directory.glob(unfinished + "*"):
            shutil.rmtree(path, ignore_errors=True)
    for path in published(directory):
        if path.name > name_of(step):
            aside = path.with_name(PASSED_OVER + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def newest(directory: Path) -> tuple[Path, About] | None:
    """The newest checkpoint whose every file is as it was written, with what is said of it; None without one.

    Rank 0 looks and decides for all. Altered checkpoints are passed over with a warning. Collective.

    Raises:
        DataError: the newest one is of a format that this version does not read.
    """
    return dist.on_main(lambda: _newest(directory))


def read(path: Path) -> About:
    """What is said of the checkpoint at ``path``. Collective. Raises `DataError` when it is not as it was written."""

    def look() -> About:
        if problem := _problem(path):
            raise DataError(
                given=f"checkpoint {path}: {problem}",
                expected="a checkpoint with every file as it was written",
                fix="begin the run that wrote it anew: remove its directory and run the same command again",
            )
        return _read_about(path)

    return dist.on_main(look)


def kept_for_good(directory: Path) -> list[tuple[Path, About]]:
    """The checkpoints in ``directory`` that stay when newer ones come, oldest first, with what is said of them."""
    return [(path, _read_about(path)) for path in published(directory) if _is_for_good(path)]


def _newest(directory: Path) -> tuple[Path, About] | None:
    found = published(directory)
    for path in reversed(found):
        _refuse_deepspeed_format(path)
        problem = _problem(path)
        if problem is None:
            return path, _read_about(path)
        warn(f"checkpoint {path} is passed over: {problem}")
    if found:
        warn(f"no good checkpoint is left in {directory}: the run starts from its beginning")
    return None


def _problem(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path``; None when every file has its recorded size and sha256."""
    try:
        listing = json.loads((path / LIST).read_text(encoding="utf-8"))
        expected = {name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in listing.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{LIST} is missing or torn"
    if set(expected) != {STATE, *TENSORS.values()}:
        return f"{LIST} does not list the files of a checkpoint"
    for name, (size, sha256) in expected.items():
        file = path / name
        try:
            if file.stat().st_size != size:
                return f"{name} is truncated"
            if file_sha256(file) != sha256:
                return f"{name} was altered"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _refuse_deepspeed_format(path: Path) -> None:
    if (path / DEEPSPEED).is_dir():
        raise DataError(
            given=f"checkpoint {path} is in DeepSpeed's own format, which earlier versions wrote",
            expected=f"{', '.join(TENSORS.values())} (pickled files are not read)",
            fix="finish this run with the version that began it, or begin it anew in another directory",
        )


def _read_about(path: Path) -> About:
    try:
        about = json.loads((path / STATE).read_text(encoding="utf-8"))
        if isinstance(about, dict) and about.get("format") != FORMAT:
            raise DataError(
                given=f"checkpoint {path} has format {about.get('format')!r}",
                expected=f"format {FORMAT}",
                fix="resume with the version that wrote it",
            )
        return config.validate(About, about, where=str(path / STATE))
    except (OSError, ValueError, RecipeError) as error:
        raise DataError(given=f"not a checkpoint's state: {error}", fix=f"remove {path}") from error


def load(engine: Engine, path: Path, about: About, other_objective: bool = False) -> None:
    """Restore ``engine`` from what `newest` found. Collective: rank 0 reads, so that no other needs its disk.

    Args:
        other_objective: the same student under another objective. Parameters that are not in the checkpoint keep their
            values; those that it has no moments of begin with moments of zero; what else it holds is left.

    Raises:
        DataError: the module is not the one that the checkpoint was written of.
    """
    shapes = engine_state.shapes(engine)
    parameters = dict(engine.module.named_parameters())
    held = {kind: list(about.parameters) if kind == WEIGHTS else about.trained for kind in KINDS}
    wanted = {kind: {name: about.parameters.get(name, []) for name in names} for kind, names in held.items()}
    with contextlib.ExitStack() as stack:
        files: dict[str, safe_open] = {}

        def open_files() -> None:
            _refuse_other_module(path, about, shapes, engine_state.trained(engine), other_objective)
            files.update(_open(path, wanted, stack))

        dist.on_main(open_files)

        def read(kind: str, name: str) -> Tensor:
            if name not in wanted[kind]:
                return engine.full_weight(parameters[name]) if kind == WEIGHTS else torch.zeros(shapes[name])
            return dist.tensor_from_main(files[kind].get_tensor(name) if files else torch.empty(shapes[name]))

        engine_state.restore(engine, about.num_updates, read)


def _refuse_other_module(
    path: Path, about: About, shapes: dict[str, list[int]], trained: list[str], other_objective: bool
) -> None:
    found, trained_there = about.parameters, set(about.trained)
    if other_objective:  # what belongs to one of the two, and what one of them trains, may differ
        found, shapes = (
            {name: shape for name, shape in parameters.items() if not name.startswith(OBJECTIVE)}
            for parameters in (found, shapes)
        )
        trained_there = set(trained)
    differences = [
        f"{name} is {shapes.get(name, 'absent')} here and {found.get(name, 'absent')} there"
        for name in [*shapes, *(found.keys() - shapes.keys())]
        if shapes.get(name) != found.get(name)
    ]
    differences += [f"{name} is trained in one of them alone" for name in sorted(set(trained) ^ trained_there)]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise DataError(
            given=f"checkpoint {path} is of another student or objective: {'; '.join(differences[:3])}{more}",
            expected="the same parameters with the same shapes",
            fix="restore what was changed since, or begin the run anew in another directory",
        )


def _open(path: Path, wanted: dict[str, dict[str, list[int]]], stack: contextlib.ExitStack) -> dict[str, safe_open]:
    """The files by kind, once they are seen to hold exactly the tensors of ``wanted``, in float32."""
    files = {}
    for kind, name in TENSORS.items():
        try:
            file = stack.enter_context(safe_open(path / name, framework="pt"))
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
        except (OSError, SafetensorError) as error:
            raise DataError(given=f"{path / name} cannot be read: {error}", fix="remove this checkpoint") from error
        if {key: one.get_shape() for key, one in slices.items()} != wanted[kind] or any(
            one.get_dtype() != "F32" for one in slices.values()
        ):
            raise DataError(
                given=f"{path / name} does not hold the tensors that its {STATE} names", fix="remove this checkpoint"
            )
        files[kind] = file
    return files
