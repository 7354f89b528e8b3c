"""What ledger, heartbeat, metrics and checks cost: the training loop beside the bare computation of the same steps.

    python -m tests.reliability.overhead [--ranks 2] [--rounds 15]

The model is tiny, so that what surrounds its step shows: blocks of steps are run in turn, by the loop (ledger, clocks,
budget, sums and checks, stop flag, heartbeat, console, metrics.jsonl and TensorBoard every 10 steps) and bare (data,
teacher, student, objective, gradient, update). The difference is milliseconds of a step whatever the model's size; it
is then put beside the fastest recorded step of a real one. Validation and checkpoints are not steps, and not counted.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import processes  # noqa: E402
import torch  # noqa: E402
from tiny_study import tiny_study, write_inputs  # noqa: E402

from kd_megatron.console import logs  # noqa: E402
from kd_megatron.data.prefetch import Prefetcher  # noqa: E402
from kd_megatron.ranks import dist  # noqa: E402
from kd_megatron.ranks.process import exit_process  # noqa: E402
from kd_megatron.recipe import BudgetRecipe  # noqa: E402
from kd_megatron.training.loop import train  # noqa: E402
from kd_megatron.training.setup import Run, prepare_run  # noqa: E402

RECORDED = ROOT / "benchmarks" / "results" / "step_6x384_cpu.json"
BLOCK_STEPS = 40
TOKENS_PER_STEP = 8 * 16


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", metavar="DIRECTORY", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        measure(Path(args.worker), args.rounds)
        exit_process(0)
    with tempfile.TemporaryDirectory() as directory:
        write_inputs(Path(directory))
        worker = ["-m", "tests.reliability.overhead", "--worker", directory, "--rounds", str(args.rounds)]
        processes.run(worker, world_size=args.ranks, timeout_seconds=1800)
        times = json.loads((Path(directory) / "times.json").read_text(encoding="utf-8"))
    show(times, args.ranks)


def measure(directory: Path, num_rounds: int) -> None:
    """Time blocks of both kinds in turn; rank 0 writes the milliseconds of a step of each block."""
    logs.quiet_libraries()
    dist.initialise()
    training = {"micro_batch_size": 8 // dist.world_size(), "log_every_steps": 10, "checkpoint_every_steps": 10**9}
    study = tiny_study(
        directory, training={**training, "tensorboard": True}, validation={"at": [1.0], "num_samples": 8}
    )
    run = prepare_run(study, "minilm", 0, directory / "run", str(directory / "teacher"))
    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for number in range(num_rounds + 1):
        for kind in ("loop", "bare") if number % 2 else ("bare", "loop"):
            milliseconds = loop_block(run) if kind == "loop" else bare_block(run)
            if number:  # the first round warms up
                times[kind].append(milliseconds)
    if dist.is_main():
        (directory / "times.json").write_text(json.dumps(times), encoding="utf-8")
    run.close()
    dist.shut_down()


def loop_block(run: Run) -> float:
    """The next steps by `train`, whose budget is moved ahead; without its checkpoint at the end."""
    budget = BudgetRecipe(tokens=(run.ledger.steps + BLOCK_STEPS) * TOKENS_PER_STEP)
    run.study = run.study.model_copy(update={"budget": budget})
    dist.barrier()
    start, saving = time.perf_counter(), run.ledger.seconds("checkpoint")
    train(run)
    dist.barrier()
    seconds = time.perf_counter() - start - (run.ledger.seconds("checkpoint") - saving)
    return 1000 * seconds / BLOCK_STEPS


def bare_block(run: Run) -> float:
    """As many steps of nothing but the computation."""
    step, engine = run.step, run.engine
    assert step.teacher is not None
    bad = torch.zeros(())
    run.module.train()
    dist.barrier()
    start = time.perf_counter()
    with Prefetcher(run.micro_batches, first=run.ledger.steps) as batches:
        for index in range(BLOCK_STEPS):
            (batch,) = batches.get(run.ledger.steps + index)
            counts = run.objective.counts(batch)
            sums = engine.forward(batch, step.teacher(batch, run.objective.options.inputs))
            loss = sum(run.objective.weights[term] * sums[term] / counts[term] for term in counts)
            assert isinstance(loss, torch.Tensor)
            engine.backward(loss / dist.world_size())
            engine.update(1e-3, bad)
    dist.barrier()
    return 1000 * (time.perf_counter() - start) / BLOCK_STEPS


def show(times: dict[str, list[float]], num_ranks: int) -> None:
    """Print both kinds, their difference, and its share of a recorded step."""
    loop, bare = (statistics.median(times[kind]) for kind in ("loop", "bare"))
    paired = statistics.median(a - b for a, b in zip(times["loop"], times["bare"], strict=True))
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))["rows"]
    row = min((r for r in rows if r["backend"] == "auto"), key=lambda r: r["p50_ms"])
    print(f"ranks: {num_ranks}, blocks of {BLOCK_STEPS} steps: {len(times['loop'])} of each kind, in turn")
    print(f"a step of the tiny model, median: {loop:.2f} ms by the loop, {bare:.2f} ms bare")
    print(f"ledger, heartbeat, metrics and checks: {paired:.2f} ms a step (median of paired differences)")
    print(f"share of the fastest recorded step ({row['name']}, {row['p50_ms']:.0f} ms): {paired / row['p50_ms']:.3%}")
    print(f"a step has to take {100 * paired:.0f} ms for it to be 1 %")


if __name__ == "__main__":
    main()
