"""Engines around a small module at every ds_config: trained, saved, restored, and trained on.

As a program: python engine_states.py DIRECTORY CASES, where CASES is "some" or "all" (see `check`); rank 0 writes
DIRECTORY/results_WORLDSIZE.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_megatron.console import logs
from kd_megatron.engine import checkpoint
from kd_megatron.engine.build import Engine
from kd_megatron.engine.saving import CheckpointWriter
from kd_megatron.engine.state import EngineState, gather
from kd_megatron.errors import OutputError
from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.recipe import TrainingRecipe

CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
PRECISIONS = ("fp32", "bf16")
BATCH = 8
STEPS = 3


class Small(nn.Module):
    """No size divides by 2 or 4, one parameter is smaller than a group of ranks, one layer is frozen."""

    def __init__(self, seed: int, width: int = 13) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.frozen, self.last = nn.Linear(7, width), nn.Linear(width, width), nn.Linear(width, 5)
        self.norm, self.scale = nn.LayerNorm(width), nn.Parameter(torch.rand(1))
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.frozen(torch.tanh(self.first(inputs.to(self.first.weight.dtype)))))
        return {"loss": (self.last(hidden) * self.scale).float().square().sum()}


def small_engine(
    config: str = "zero0", precision: str = "fp32", seed: int = 0, module: nn.Module | None = None
) -> Engine:
    recipe = TrainingRecipe.model_validate(
        {"global_batch_size": BATCH, "micro_batch_size": BATCH // dist.world_size(), "ds_config": config}
        | {"precision": precision}
    )
    return Engine(module or Small(seed), recipe)


def train(engine: Engine, first_step: int, num_steps: int = STEPS) -> list[float]:
    """Global loss and gradient norm of each step."""
    numbers = []
    for step in range(first_step, first_step + num_steps):
        whole = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))
        mine = whole.chunk(dist.world_size())[dist.rank()]
        loss = engine.forward(mine)["loss"] / BATCH
        engine.backward(loss)
        norm = engine.update(1e-2, torch.zeros(()))
        numbers += [float(dist.all_reduce(loss.detach().double())), float(norm)]
    return numbers


def equal(one: EngineState, other: EngineState) -> bool:
    """Bit for bit, on rank 0; true elsewhere."""
    same_updates = one.num_updates == other.num_updates
    return same_updates and all(same_tensors(one.tensors[kind], other.tensors[kind]) for kind in one.tensors)


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def on_disk(path: Path, num_updates: int) -> EngineState:
    return EngineState(num_updates, {kind: load_file(path / name) for kind, name in checkpoint.TENSORS.items()})


def loaded(directory: Path, config: str, precision: str) -> Engine:
    """An engine that began with other numbers everywhere, restored from ``directory``."""
    engine = small_engine(config, precision, seed=1)
    found = checkpoint.newest(directory)
    assert found is not None
    checkpoint.load(engine, *found)
    return engine


def check_own(directory: Path, config: str, precision: str) -> dict[str, Any]:
    """Save after 3 steps, go on for 3; restore into a fresh engine at the same configuration, go on for 3."""
    engine = small_engine(config, precision)
    train(engine, 0)
    writer = CheckpointWriter(directory, keep=1)
    writer.save(engine, STEPS, {})
    at_save = gather(engine)
    curve = train(engine, STEPS)
    at_end = gather(engine)
    engine.close()
    writer.wait()
    resumed = loaded(directory, config, precision)
    restored = equal(gather(resumed), at_save)
    again = train(resumed, STEPS)
    continued = again == curve and equal(gather(resumed), at_end)
    resumed.close()
    if dist.is_main():
        (directory / "curve.json").write_text(json.dumps(curve))
    return {"restored": restored, "continued": continued, "updates": at_save.num_updates, "curve": curve}


def check_other(source: Path, config: str, precision: str) -> dict[str, Any]:
    """Restore what another stage or number of processes wrote: the very numbers, and a curve that goes on from them."""
    engine = loaded(source, config, precision)
    state = gather(engine)
    restored = equal(state, on_disk(source / f"step_{STEPS:08d}", STEPS)) if dist.is_main() else True
    curve = train(engine, STEPS)
    engine.close()
    return {"restored": restored, "curve": curve, "expected": json.loads((source / "curve.json").read_text())}


def refused_on_all_ranks(directory: Path) -> list[bool]:
    """A checkpoint that rank 0 cannot write: whether each rank is told when the next one is due."""
    engine, writer = small_engine(), CheckpointWriter(directory / "no" / "directory", keep=1)
    if dist.is_main():
        directory.mkdir(exist_ok=True)
        (directory / "no").write_text("a file")
    writer.save(engine, 1, {})
    try:
        writer.save(engine, 2, {})
    except OutputError as error:
        told = "could not be written: NotADirectoryError" in str(error)
    else:
        told = False
    engine.close()
    return dist.gather(told)


def check(directory: Path, every_pair: bool) -> dict[str, Any]:
    """All configurations, each by itself and from those that other numbers of processes left in ``directory``.

    ``every_pair``: from every configuration; otherwise each from one of the others.
    """
    results: dict[str, Any] = {}
    for precision in PRECISIONS:
        earlier = sorted(directory.glob(f"*-{precision}-*"))
        for number, config in enumerate(CONFIGS):
            name = f"{config}-{precision}-{dist.world_size()}"
            others = earlier if every_pair or not earlier else [earlier[(number + 1) % len(earlier)]]
            for source in others:
                results[f"{source.name}>{name}"] = check_other(source, config, precision)
            results[name] = check_own(directory / name, config, precision)
    return results


if __name__ == "__main__":
    place, cases = Path(sys.argv[1]), sys.argv[2]
    logs.quiet_libraries()
    dist.initialise()
    found = check(place, every_pair=cases == "all")
    refusals = refused_on_all_ranks(place / f"refused_{dist.world_size()}")
    if dist.is_main():
        found["refused"] = refusals
        (place / f"results_{dist.world_size()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.shut_down()
    exit_process(0)
