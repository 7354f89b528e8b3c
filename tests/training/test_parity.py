"""The same 20 steps, however they are split: micro-batches, processes, ZeRO stages (docs/fairness.md, clause 7)."""

import json
from pathlib import Path

import processes
import pytest
from curves import Curve, largest_difference
from tiny_study import ARMS, write_inputs
from tolerances import PARITY_BF16_RELATIVE, PARITY_FLOAT32_RELATIVE

Curves = dict[str, Curve]
WORKER = str(Path(__file__).parent / "parity_worker.py")
STAGES = ("zero0", "zero1", "zero2", "zero3")


def run_cases(directory: Path, cases: dict[int, list[str]]) -> Curves:
    """The curves of all cases, by name; ``cases`` by the number of processes, side by side."""
    outputs = {world_size: directory / f"curves_{world_size}.json" for world_size in cases}
    started = [
        processes.start([WORKER, str(directory), str(output), *cases[world_size]], world_size)
        for world_size, output in outputs.items()
    ]
    for ranks in started:
        processes.finish(ranks)
    return {name: curve for path in outputs.values() for name, curve in json.loads(path.read_text()).items()}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """All curves, by name OBJECTIVE-PROCESSES-STAGE-SPLIT-PRECISION."""
    directory = write_inputs(tmp_path_factory.mktemp("parity"))
    alone, together = [], []
    for objective in ARMS:
        for size in (8, 4, 2):  # 1x8, 2x4, 4x2
            alone.append(f"{objective}-1-zero0-{size}-fp32:{objective}:zero0:{size}:fp32")
        alone += [f"{objective}-1-{stage}-4-fp32:{objective}:{stage}:4:fp32" for stage in STAGES[1:]]
        together += [f"{objective}-2-{stage}-4-fp32:{objective}:{stage}:4:fp32" for stage in STAGES]
        together.append(f"{objective}-2-zero2-2-fp32:{objective}:zero2:2:fp32")
        alone += [f"{objective}-1-{stage}-4-bf16:{objective}:{stage}:4:bf16" for stage in ("zero0", "zero2")]
        together.append(f"{objective}-2-zero1-2-bf16:{objective}:zero1:2:bf16")
    return run_cases(directory, {1: alone, 2: together})


@pytest.mark.parametrize("objective", ARMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_splits_processes_and_stages_give_the_same_losses_and_norms(
    curves: Curves, objective: str, precision: str
) -> None:
    tolerance = {"fp32": PARITY_FLOAT32_RELATIVE, "bf16": PARITY_BF16_RELATIVE}[precision]
    reference = curves[f"{objective}-1-zero0-8-fp32"]
    names = [name for name in curves if name.startswith(objective) and name.endswith(precision)]
    assert all(len(curves[name]) == 20 for name in names)
    assert len(names) == {"fp32": 11, "bf16": 3}[precision]
    differences = {name: largest_difference(reference, curves[name]) for name in names}
    assert max(differences.values()) <= tolerance, differences


@pytest.mark.parametrize("objective", ARMS)
def test_the_curves_move(curves: Curves, objective: str) -> None:
    """The comparison above would also hold if nothing were trained."""
    first, *_, last = curves[f"{objective}-1-zero0-8-fp32"]
    assert sum(last.values()) != pytest.approx(sum(first.values()), rel=0.01)
