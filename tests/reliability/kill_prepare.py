"""`prepare` killed (SIGKILL) at random moments and started again: the same bytes, and finished shards stay as they are.

    python -m tests.reliability.kill_prepare --kills 100
    python -m tests.reliability.kill_prepare --kills 10 --workers 2

With one worker a moment is a random file operation (opening for writing, renaming, removing, making a directory), so
that every stage is hit, the shortest too. With more, it is a random time, and now and then a worker is killed instead.
Ends with 1 when the bytes of a resumed set differ from an uninterrupted one's, or a finished shard was written again.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
NUM_SHARDS = 6


def main(arguments: list[str] | None = None) -> int:
    """Kill, resume, compare; print the tally."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.kill_prepare", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    rng, tally, failures = random.Random(args.seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="kill_prepare_") as name:
        directory = Path(name)
        write_corpus(directory / "corpus.jsonl", num_documents=200 if args.workers == 1 else 1500)
        whole, num_operations = uninterrupted(directory)
        rounds = 0
        while tally.total() < args.kills:
            rounds += 1
            output = directory / f"out-{rounds}"
            failures += one_round(rng, directory, output, args.workers, num_operations, tally)
            if contents(output) != whole:
                failures.append(f"round {rounds}: other bytes")
    for stage, count in sorted(tally.items()):
        print(f"{count:6}  killed in {stage}")
    print("\n".join(failures[:20]))
    print(f"{tally.total()} kills, {rounds} sets, {len(failures)} failures")
    return 1 if failures else 0


def one_round(
    rng: random.Random, directory: Path, output: Path, workers: int, num_operations: int, tally: Counter[str]
) -> list[str]:
    """Kill one to three times, then let it finish."""
    failures = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        if workers == 1:
            kill: Callable[[int], None] | int = rng.randrange(num_operations)
        else:
            moment, at_worker = rng.uniform(0.5, 8.0), rng.random() < 0.3
            kill = lambda pid, moment=moment, at_worker=at_worker: _kill_later(pid, moment, at_worker)  # noqa: E731
        before = finished(output)
        if run_and_kill(directory, output, workers, kill):
            tally[stage(output)] += 1
        elif not output.exists():
            failures.append(f"{output.name}: it ended by itself, without an output")
        if any(finished(output).get(shard, inode) != inode for shard, inode in before.items()):
            failures.append(f"{output.name}: a finished shard was written again")
    before = finished(output)
    run_and_kill(directory, output, workers if rng.random() < 0.5 else 1, None)
    after = {path.stem: path.stat().st_ino for path in output.glob("*.bin")}
    if any(after.get(shard) != inode for shard, inode in before.items()):
        failures.append(f"{output.name}: a finished shard was written again")
    return failures


def run_and_kill(directory: Path, output: Path, workers: int, kill: "Callable[[int], None] | int | None") -> bool:
    """`prepare` in a process of its own, killed at operation number ``kill`` or by it; whether it died so."""
    limit = kill if isinstance(kill, int) else None
    process = get_context("fork").Process(target=_prepare, args=(directory, output, workers, limit))
    process.start()
    if callable(kill):
        kill(int(process.pid or 0))
    process.join()
    return process.exitcode != 0


def _prepare(directory: Path, output: Path, workers: int, limit: int | None) -> None:
    from data_prep.prepare import prepare
    from kd_megatron.console import logs

    logs.console.quiet = True
    if limit is not None:
        sys.addaudithook(_Killer(limit, str(output)))
    os.environ["PYTHONPATH"] = str(ROOT)
    prepare(recipe(directory, output), workers)


class _Killer:
    """Counts what is done to files below ``output`` and its partial directory; kills this process at one of them."""

    def __init__(self, limit: int | None, output: str) -> None:
        self.limit, self.output, self.count = limit, output, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in OPERATIONS) and str(args[0]).startswith(self.output):
            if self.count == self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def _kill_later(pid: int, seconds: float, at_worker: bool) -> None:
    time.sleep(seconds)
    children = (
        [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if at_worker else []
    )
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    try:
        os.kill(workers[0] if workers else pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def uninterrupted(directory: Path) -> tuple[dict[str, Any], int]:
    """The set as it should be, and how many file operations it takes; all in this process."""
    from data_prep.prepare import prepare
    from kd_megatron.console import logs

    logs.console.quiet = True
    output = directory / "whole"
    counter = _Killer(None, str(output))
    sys.addaudithook(counter)
    prepare(recipe(directory, output), 1)
    return contents(output), counter.count


def recipe(directory: Path, output: Path) -> Any:
    from kd_megatron.recipe import CorpusRecipe

    return CorpusRecipe.model_validate(
        {
            "kind": "corpus",
            "name": "killed",
            "output": str(output),
            "sources": [{"type": "files", "paths": [str(directory / "corpus.jsonl")]}],
            "clean": {"min_characters": 20, "min_english_fraction": 0.0},
            "tokenizer": {"train": {"vocab_size": 300}},
            "valid_fraction": 0.1,
            "num_shards": NUM_SHARDS,
        }
    )


def write_corpus(path: Path, num_documents: int) -> None:
    """Documents of random words; every tenth is there twice."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=120)) for _ in range(num_documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[::10]]))


def partial_of(output: Path) -> Path | None:
    return next(iter(output.parent.glob(f"{output.name}.partial-*")), None)


def finished(output: Path) -> dict[str, int]:
    """Each finished shard and the inode of its ``.bin``."""
    partial = partial_of(output)
    entries = list(partial.glob("*-*.json")) if partial else []
    return {path.stem: path.with_suffix(".bin").stat().st_ino for path in entries}


def stage(output: Path) -> str:
    """How far it had come."""
    partial = partial_of(output)
    if partial is None:
        return "publication, after the rename" if output.exists() else "the beginning"
    if (partial / "manifest.json").exists():
        return "publication"
    if (partial / "tokenizer").exists():
        return "shards"
    return "tokenizer" if (partial / "spool" / "complete.json").exists() else "spool"


def contents(directory: Path) -> dict[str, Any]:
    """Every file of a shard set; the manifest without the output's own path."""
    found: dict[str, Any] = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["recipe"]["output"], manifest["checksum"]
    return found | {"manifest.json": manifest}


if __name__ == "__main__":
    sys.exit(main())
