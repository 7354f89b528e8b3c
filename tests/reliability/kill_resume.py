"""kill -9 at random moments of a 2-process ZeRO-2 run, resumed each time: does it end with the same bits?

    python -m tests.reliability.kill_resume --kills 100

A short training run is killed and started again until it finishes; then the next one, until all kills are spent. Each
finished run is compared with one that was never killed: exported weights, the last checkpoint's masters and moments,
rows of metrics.jsonl (without times) and what the ledger counts. Exits with 1 on any difference.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as pytest has it

import processes
import torch
import yaml
from safetensors.torch import load_file
from tiny_study import tiny_study, write_inputs

ARM = "vanilla_kd"
NUM_STEPS = 300
WORLD_SIZE = 2
TRAINING = {
    "ds_config": "zero2", "precision": "bf16", "micro_batch_size": 4, "checkpoint_every_steps": 3,
    "keep_checkpoints": 2, "keep_at": [0.5],
}  # fmt: skip
# How a kill is aimed, and how often: at both ranks or at one, whose peer must then end by itself; while training, while
# a checkpoint is being written, at any moment of the start, or when all steps are done but not validation and export.
AIMS = {
    "both ranks": 4, "rank 0": 4, "rank 1": 4,
    "both ranks, writing": 4, "rank 0, writing": 3, "both ranks, starting": 3, "both ranks, finishing": 1,
}  # fmt: skip
SECONDS_OF_TRAINING = 2.0 / NUM_STEPS  # a step of the run: the latest moment of a kill after the first step
SECONDS_OF_START = 12.0
SECONDS_OF_END = 1.0  # from the last step on
PEER_SECONDS = 90.0  # within which the rank that is left must end
PATIENCE_SECONDS = 300.0  # for what should happen soon
TIMES = ("hours", "tokens_per_second")


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    torn_writes: int = 0  # kills that left a checkpoint half-written
    finished_runs: int = 0
    slowest_peer: float = 0.0  # seconds until the rank that was left had ended
    differences: list[str] = field(default_factory=list)

    def text(self) -> str:
        kinds = "\n".join(f"  {count:4d}  {kind}" for kind, count in sorted(self.kills.items()))
        verdict = "DIFFERENT: " + "; ".join(self.differences) if self.differences else "all bitwise equal"
        return (
            f"{self.kills.total()} kills -9:\n{kinds}\n"
            f"{self.resumes} resumes from a checkpoint; {self.torn_writes} kills left a checkpoint half-written; "
            f"a rank whose peer was killed ended within {self.slowest_peer:.1f} s\n"
            f"{self.finished_runs} runs finished, compared with one that was never killed: {verdict}"
        )


class Ranks:
    """The two processes of a run; ``fresh``: they import the libraries themselves, and may be killed meanwhile."""

    def __init__(self, recipe: Path, run: Path, fresh: bool = False) -> None:
        self.run = run
        command = ["-m", "kd_megatron", "pretrain", str(recipe), "--arm", ARM, "--output", str(run)]
        self.processes = processes.start(command, WORLD_SIZE, fresh)

    def output(self) -> str:
        return "\n".join(process.output() for process in self.processes)

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def kill(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self.processes[rank].kill()

    def wait(self, seconds: float) -> list[int]:
        """Exit codes, within ``seconds``; afterwards nothing is left running."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.kill(range(WORLD_SIZE))
            for process in self.processes:
                process.wait()


def write_recipe(directory: Path, num_steps: int) -> Path:
    """A tiny study with dropout, so that a wrong random state shows."""
    study = tiny_study(
        write_inputs(directory / "inputs"),
        training=TRAINING,
        student={"hidden_dropout": 0.1},
        budget={"tokens": num_steps * 8 * 16},
    )
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    return path


def run_to_the_end(recipe: Path, run: Path, tally: Tally) -> None:
    ranks = Ranks(recipe, run)
    codes = ranks.wait(PATIENCE_SECONDS)
    if any(codes):
        raise SystemExit(f"a run that nobody killed ended with {codes}:\n{ranks.output()[-6000:]}")
    count_start(ranks, tally)


def count_start(ranks: Ranks, tally: Tally) -> None:
    tally.resumes += "resumed from" in ranks.output()


def kill_once(recipe: Path, run: Path, aim: str, chance: random.Random, latest: float, tally: Tally) -> None:
    """Start (or resume) the run and kill it at a random moment; it may also finish before."""
    ranks = Ranks(recipe, run, fresh=aim.endswith("starting"))
    aimed = wait_for_the_moment(ranks, aim, chance, latest)
    if not aimed:
        codes = ranks.wait(PATIENCE_SECONDS)
        if any(codes):
            tally.differences.append(f"ended with {codes} before it was killed: {ranks.output()[-3000:]}")
        count_start(ranks, tally)
        return
    victims = {"both ranks": (0, 1), "rank 0": (0,), "rank 1": (1,)}[aim.split(",")[0]]
    ranks.kill(victims)
    tally.kills[aim] += 1
    start = time.monotonic()
    try:
        codes = ranks.wait(PEER_SECONDS)
    except subprocess.TimeoutExpired:
        codes = []
        tally.differences.append(f"a rank outlived its peer by {PEER_SECONDS:.0f} s: {ranks.output()[-3000:]}")
    if len(victims) == 1:
        tally.slowest_peer = max(tally.slowest_peer, time.monotonic() - start)
        if 0 in codes and not (run / "summary.json").exists():  # written last: who has seen it may say so
            tally.differences.append("a rank whose peer was killed said that all went well")
    count_start(ranks, tally)
    tally.torn_writes += any((run / "checkpoints").glob(".writing_*"))


def wait_for_the_moment(ranks: Ranks, aim: str, chance: random.Random, latest: float) -> bool:
    """Whether the moment, of training ``latest`` seconds after its first step, came while the ranks were running."""
    if aim.endswith("starting"):
        return keep_looking(ranks, time.monotonic() + chance.uniform(0.0, SECONDS_OF_START))
    before = metrics(ranks.run)
    if aim.endswith("finishing"):
        done = keep_looking(ranks, None, lambda: b'"budget_fraction": 1.0' in metrics(ranks.run))
        return done and keep_looking(ranks, time.monotonic() + chance.uniform(0.0, SECONDS_OF_END))
    started = keep_looking(ranks, None, lambda: metrics(ranks.run) != before)  # dropped rows are a change as well
    if not started or not keep_looking(ranks, time.monotonic() + chance.uniform(0.0, latest)):
        return False
    if aim.endswith("writing"):
        return keep_looking(ranks, None, lambda: is_writing(ranks.run))
    return ranks.running()


def keep_looking(ranks: Ranks, until: float | None, seen: Any = lambda: False) -> bool:
    """Look until the moment ``until`` or until ``seen``; False when a rank has ended before."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while ranks.running():
        if seen() or (until is not None and time.monotonic() >= until):
            return True
        if time.monotonic() > give_up:
            raise SystemExit(f"nothing happened for {PATIENCE_SECONDS:.0f} s:\n{ranks.output()[-6000:]}")
        time.sleep(0.001)
    return False


def is_writing(run: Path) -> bool:
    try:
        return any(entry.name.startswith(".writing_") for entry in os.scandir(run / "checkpoints"))
    except FileNotFoundError:
        return False


def metrics(run: Path) -> bytes:
    path = run / "metrics.jsonl"
    return path.read_bytes() if path.exists() else b""


def differences(reference: Path, run: Path) -> list[str]:
    """In what ``run`` is not ``reference``."""
    found = []
    for name in ("export/model.safetensors", *(f"checkpoints/{path}" for path in last_tensors(reference))):
        before, after = load_file(reference / name), load_file(run / name)
        if before.keys() != after.keys() or not all(torch.equal(before[key], after[key]) for key in before):
            found.append(f"{run.name}/{name}")
    if timeless_rows(reference) != timeless_rows(run):
        found.append(f"{run.name}/metrics.jsonl")
    if counts(reference) != counts(run):
        found.append(f"{run.name}/ledger.json")
    if checkpoint_names(reference) != checkpoint_names(run):
        found.append(f"{run.name}/checkpoints: {checkpoint_names(run)}, expected {checkpoint_names(reference)}")
    return found


def checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def last_tensors(run: Path) -> list[str]:
    last = run / "checkpoints" / checkpoint_names(run)[-1]
    return [f"{last.name}/{path.name}" for path in last.glob("*.safetensors")]


def timeless_rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def counts(run: Path) -> dict[str, Any]:
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    flops = {name: entry["flops"] for name, entry in ledger["accounts"].items()}
    return {name: ledger[name] for name in ("steps", "tokens", "unique_tokens", "overshoot")} | flops


def random_aims(num_kills: int, seed: int) -> list[str]:
    return random.Random(seed).choices(list(AIMS), list(AIMS.values()), k=num_kills)


def kill_and_resume(
    directory: Path, aims: list[str], seed: int, num_steps: int = NUM_STEPS, say: Callable[[str], None] = print
) -> Tally:
    """Kill as ``aims`` say, on as many runs as that takes; each finished one is compared with one never killed."""
    chance, tally = random.Random(seed), Tally()
    recipe = write_recipe(directory, num_steps)
    reference = directory / "never_killed"
    run_to_the_end(recipe, reference, Tally())
    while tally.kills.total() < len(aims) and not tally.differences:
        run = directory / f"run_{tally.finished_runs}"
        while not tally.differences and not (run / "summary.json").exists():
            done = tally.kills.total()
            if done == len(aims):
                run_to_the_end(recipe, run, tally)
            else:
                kill_once(recipe, run, aims[done], chance, num_steps * SECONDS_OF_TRAINING, tally)
                say(f"{tally.kills.total()} of {len(aims)} kills; {run.name} at {progress(run)}")
        if not tally.differences:
            tally.differences += differences(reference, run)
            tally.finished_runs += 1
            shutil.rmtree(run)
    return tally


def progress(run: Path) -> str:
    names = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    return names[-1] if names else "no checkpoint"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_resume_") as directory:
        aims = random_aims(arguments.kills, arguments.seed)
        tally = kill_and_resume(Path(directory), aims, arguments.seed, say=partial(print, flush=True))
    print(tally.text())
    return bool(tally.differences)


if __name__ == "__main__":
    raise SystemExit(main())
