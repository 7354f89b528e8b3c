"""Checkpoints that are complete or absent, and the newest good one.

A checkpoint is written aside, its files are listed with size and sha256, and one rename publishes it: a process
killed at any moment leaves the previous checkpoint untouched. DeepSpeed's own ``latest`` file is not used (rank 0
writes it before other ranks have finished). The run's state (step, consumed samples, ledger) lies beside as JSON;
random numbers need no state, because every step seeds them from (run seed, step, rank).
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from kd_megatron import dist
from kd_megatron.engine.build import Engine
from kd_megatron.errors import DataError, KdError, disk_full_is_clear
from kd_megatron.logs import warn
from kd_megatron.manifest import file_sha256

LIST = "files.json"
STATE = "run_state.json"
TAG = "engine"


def save(engine: Engine, directory: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of ``step`` into ``directory`` and drop all but the newest ``keep``. Collective."""
    final = directory / f"step_{step:08d}"
    aside = directory / f".writing_step_{step:08d}"
    if dist.is_main():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    try:
        with disk_full_is_clear(final):
            engine.deepspeed.save_checkpoint(str(aside), tag=TAG, save_latest=False)
            dist.barrier()
            if dist.is_main():
                (aside / STATE).write_text(json.dumps(state), encoding="utf-8")
                _publish(aside, final)
                for old in _published(directory)[:-keep]:
                    shutil.rmtree(old)
    except KdError:  # a full disk: give back what this one took; the checkpoints before it stay
        shutil.rmtree(aside, ignore_errors=True)
        raise
    dist.barrier()
    return final


def _publish(aside: Path, final: Path) -> None:
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    listing = {str(p.relative_to(aside)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
    (aside / LIST).write_text(json.dumps(listing, indent=1), encoding="utf-8")
    for path in [*files, aside / LIST]:
        _to_disk(path)
    if final.exists():  # an altered checkpoint of the same step, written again after a resume from the one before
        shutil.rmtree(final)
    os.replace(aside, final)
    _to_disk(final.parent)


def _to_disk(path: Path) -> None:
    """Flush to the device: a rename must not become durable before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _published(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step_*") if path.is_dir())


def newest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose every file is as it was written, with its run state; None when there is none.

    Rank 0 looks and decides for all. Altered checkpoints are passed over with a warning.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    if dist.is_main():
        for path in reversed(_published(directory)):
            problem = _problem(path)
            if problem is None:
                found = path, json.loads((path / STATE).read_text(encoding="utf-8"))
                break
            warn(f"checkpoint {path} is passed over: {problem}")
    return dist.from_main(found)


def _problem(path: Path) -> str | None:
    """What is wrong with the checkpoint at ``path``; None when every file has its recorded size and sha256."""
    try:
        listing = json.loads((path / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{LIST} is missing or torn"
    for name, facts in listing.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            return f"{name} is missing or truncated"
        if file_sha256(file) != facts["sha256"]:
            return f"{name} was altered"
    return None


def load(engine: Engine, path: Path) -> None:
    """Restore weights and optimizer from ``path``, which `newest` found good. Collective."""
    loaded, _ = engine.deepspeed.load_checkpoint(str(path), tag=TAG)
    if loaded is None:
        raise DataError(
            given=f"checkpoint {path} could not be loaded on rank {dist.rank()}",
            expected="a checkpoint of the same number of processes and ZeRO stage",
            fix="resume with the processes and ds_config it was written with, or start anew elsewhere",
        )
