"""Damaged shard sets, opened by the real loader and verified: refused with a clear error, or read without a difference.

    python -m tests.reliability.fuzz_data --cases 2000

Each case has a seed of its own: ``--cases 1 --seed S`` does one again. Cases run in worker processes, so that a crash
(or a hang) of one is counted and the others go on. Ends with 1 when a case failed: any exception that is no `KdError`,
an error that does not name the file, batches other than those of the intact set, a crash, a hang.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # small_shards, as the tests import it

from reliability import damage  # noqa: E402

CASES_PER_PROCESS = 250
SECONDS_PER_CASE = 20.0
REFUSED, HARMLESS, READ = "refused", "harmless", "read as vouched for"
LENGTH = 16


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print the tally; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz_data", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    parser.add_argument("--worker", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        run_cases(Path(args.worker), args.seed, args.cases)
        return 0
    with tempfile.TemporaryDirectory(prefix="fuzz_data_") as directory:
        write_intact_sets(Path(directory))
        results = run_all(Path(directory), args.seed, args.cases)
    return report(results)


def write_intact_sets(directory: Path) -> None:
    """Three sets: the one to damage, one with the same tokenizer, one with another."""
    from small_shards import random_documents, write_shard_set

    for number, (name, word) in enumerate((("intact", "w"), ("second", "w"), ("foreign", "v"))):
        shards = {f"{split}-{i:05d}": random_documents(10 * number + seed, 12) for seed, (split, i) in enumerate(
            (("train", 0), ("train", 1), ("valid", 0)))}  # fmt: skip
        write_shard_set(directory / name, shards, first_word=word)


def run_all(directory: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Every case's result; a worker that dies or hangs costs the case it was at, and a new one goes on after it."""
    results: list[dict[str, Any]] = []
    seed, end = first, first + count
    while seed < end:
        num = min(CASES_PER_PROCESS, end - seed)
        found, how = run_worker(directory, seed, num)
        results += found
        seed += len(found)
        if len(found) < num:
            results.append({"seed": seed, "damage": damage_of(seed)[0].__name__, "outcome": "FAILED", "why": how})
            seed += 1
    return results


def run_worker(directory: Path, seed: int, count: int) -> tuple[list[dict[str, Any]], str]:
    """The results that one process delivered, and how it ended."""
    command = [sys.executable, "-m", "tests.reliability.fuzz_data", "--worker", str(directory), "--seed", str(seed)]
    output = directory / "results.jsonl"
    with output.open("w") as file:
        try:
            process = subprocess.run(
                [*command, "--cases", str(count)], stdout=file, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent,
                timeout=60 + SECONDS_PER_CASE * count / 10, check=False,
            )  # fmt: skip
            how = f"the process ended with {process.returncode}: {process.stderr[-500:]}"
        except subprocess.TimeoutExpired:
            how = "hang"
    return [json.loads(line) for line in output.read_text().splitlines()], how


def report(results: list[dict[str, Any]]) -> int:
    """Print the tally of damage x outcome, then the failures."""
    tally = Counter((result["damage"], result["outcome"]) for result in results)
    for (name, outcome), count in sorted(tally.items()):
        print(f"{count:6}  {name:<28} {outcome}")
    failed = [result for result in results if result["outcome"] == "FAILED"]
    for result in failed[:20]:
        print(f"seed {result['seed']} ({result['damage']}): {result['why']}")
    print(f"{len(results)} cases, {len(failed)} failed")
    return 1 if failed else 0


# --- in a worker ------------------------------------------------------------------------------------------


def run_cases(directory: Path, first: int, count: int) -> None:
    """Run the cases of one process; a line of JSON on stdout for each."""
    from kd_megatron.console import logs

    logs.console.quiet = True
    reference = {split: batches(directory / "intact", split) for split in ("train", "valid")}
    for seed in range(first, first + count):
        print(json.dumps(run_case(directory, seed, reference)), flush=True)


def damage_of(seed: int) -> tuple[damage.Damage, bool]:
    """What a case damages, and whether under a running loader (one case in six)."""
    rng = random.Random(f"kind {seed}")
    while_running = rng.random() < 1 / 6
    return rng.choice(damage.UNDER_A_RUN if while_running else damage.AT_REST), while_running


def run_case(directory: Path, seed: int, reference: dict[str, str]) -> dict[str, Any]:
    """Copy the intact set, damage it, open it."""
    rng, (harm, while_running) = random.Random(seed), damage_of(seed)
    case = damage.Case(directory / f"case-{seed}", [directory / "second", directory / "foreign"])
    shutil.copytree(directory / "intact", case.directory)
    result = {"seed": seed, "damage": harm.__name__, "outcome": "FAILED"}
    try:
        judge = judge_running if while_running else judge_at_rest
        return result | {"outcome": judge(rng, harm, case, reference)}
    except Exception as error:
        return result | {"why": f"{type(error).__name__}: {str(error)[:400]}"}
    finally:
        shutil.rmtree(case.directory, ignore_errors=True)


def judge_at_rest(rng: random.Random, harm: damage.Damage, case: damage.Case, reference: dict[str, str]) -> str:
    from data_prep.verify import verify
    from kd_megatron.data import index, mapped

    mapped.TICK_SECONDS = 0.0  # nothing is damaged after it was opened
    if rng.random() < 0.5:  # it was opened and found good before
        index.SETTLED_SECONDS = -1.0
        batches(case.directory, "train")
    named = harm(rng, case)
    refusals = []
    for look in (
        lambda: batches(case.directory, "train"),
        lambda: batches(case.directory, "valid"),
        lambda: verify(case.directory),
    ):
        refusals.append(refusal(look, named))
    if all(refusals):
        return REFUSED
    if not named:
        return READ if not any(refusals) else REFUSED
    for split, refused in zip(("train", "valid"), refusals, strict=False):
        if not refused and batches(case.directory, split) != reference[split]:
            raise AssertionError(f"other {split} batches than those of the intact set")
    if any(refusals[:2]) and not refusals[2]:
        raise AssertionError("verify accepts what the loader refuses")
    return REFUSED if any(refusals) else HARMLESS


def judge_running(rng: random.Random, harm: damage.Damage, case: damage.Case, reference: dict[str, str]) -> str:
    from kd_megatron.data import mapped

    mapped.TICK_SECONDS = 0.05
    loader = open_loader(case.directory, "train")
    if digest(loader) != reference["train"]:
        raise AssertionError("the intact set gave other batches")
    named = harm(rng, case)
    time.sleep(mapped.JUST_NOW_SECONDS)  # what remains open: a file cut short within this time of the last look
    seen: list[str] = []
    refused = refusal(lambda: seen.append(digest(loader)), named)
    if not refused and seen != [reference["train"]]:
        raise AssertionError("garbage was read")
    if not refused and harm is not damage.only_touched:
        raise AssertionError("it was not noticed")
    return REFUSED if refused else HARMLESS


def refusal(look: Any, named: set[str]) -> str:
    """The message of the `KdError` that ``look`` raises, "" when it raises none. It must name one of ``named``."""
    from kd_megatron.errors import DataError

    try:
        look()
    except DataError as error:
        if named and not any(name in str(error) for name in named):
            raise AssertionError(f"the error names none of {sorted(named)}: {error}") from error
        return str(error)
    return ""


def open_loader(directory: Path, split: Any) -> Any:
    from kd_megatron.data.loader import Loader
    from kd_megatron.recipe import DataRecipe

    recipe = DataRecipe.model_validate({"shards": [{"path": str(directory)}], "sequence_length": LENGTH})
    return Loader(recipe, run_seed=3, split=split)


def batches(directory: Path, split: str) -> str:
    """A digest of what a loader that opens ``directory`` reads."""
    return digest(open_loader(directory, split))


def digest(loader: Any) -> str:
    """Of every window of an epoch and of the next batch, in two batches, with their masks."""
    hashed = hashlib.sha256(f"{loader.num_windows} {loader.vocab_size} {loader.special}".encode())
    for first, count in ((0, loader.num_windows), (loader.num_windows, 8)):
        batch = loader.batch(first, count)
        for field in fields(batch):
            value = getattr(batch, field.name)
            hashed.update(b"" if value is None else value.numpy().tobytes())
    return hashed.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
