"""What the throughput tests measure, small enough for a shared machine of two cores; as a program it records.

    OMP_NUM_THREADS=1 python tests/throughput/small_steps.py

writes `recorded.json` beside itself: do that on a quiet machine, and say in the commit why the ratios changed.
Peers take part where `KD_PEER_PYTHON` names an interpreter that has them (`bench --help`, --peer-python).
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from benchmarks.data.made_up import write_made_up
from benchmarks.kernels import steps
from benchmarks.kernels.attention_cases import RelationKl, ScoreMse
from benchmarks.kernels.case import Case
from benchmarks.kernels.vocab_cases import VocabKl
from benchmarks.rows import Row, as_json, timing_figures
from benchmarks.steps import ladder, made_up_inputs, peers, throughput
from benchmarks.steps import variants as timed_arms
from kd_megatron.console import logs
from kd_megatron.files import records
from kd_megatron.machine import facts
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import run_recipe
from kd_megatron.training.fingerprint import PACKAGES

RECORDED = Path(__file__).with_name("recorded.json")
NUM_ROUNDS = 25
PEER_PYTHON = os.environ.get("KD_PEER_PYTHON")
CPU = torch.device("cpu")
# Each beside eager: the backend that `auto` takes on a CPU at this shape.
KERNELS: list[tuple[Case, str]] = [
    (RelationKl(8, 128), "chunked"),
    (ScoreMse(8, 512), "closed_form"),
    (VocabKl(512, vocab_size=8192, student_width=256, teacher_width=256), "chunked"),
]


def recipe(shards: Path) -> StudyRecipe:
    """A 3 x 128 student of a 6 x 128 teacher, 2,048 tokens of vocabulary; one step takes about a tenth of a second."""
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    arms: dict[str, dict[str, Any]] = {
        name: {"objective": name} for name in ("scratch", "vanilla_kd", "minilm", "tinybert")
    }
    arms["minilm"]["num_relation_heads"] = 4
    return StudyRecipe.model_validate(
        {
            "kind": "study",
            "name": "throughput",
            "data": {"shards": [{"path": str(shards)}], "sequence_length": 64},
            "teacher": {
                "train": {"encoder": sizes | {"num_layers": 6}, "budget": {"tokens": 1}},
                "precision": "fp32",
            },
            "student": sizes | {"num_layers": 3},
            "arms": arms,
            "budget": {"tokens": 10**9},
            "training": {
                "global_batch_size": 16, "micro_batch_size": 16, "precision": "fp32", "tensorboard": False,
            },
            "validation": {"num_samples": 8},
        }
    )  # fmt: skip


@contextmanager
def small_study() -> Iterator[tuple[StudyRecipe, str]]:
    """The recipe with its shards, and the path of its teacher."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = write_made_up(directory / "shards", 300_000, vocab_size=2048)
        ready, teacher = stack.enter_context(made_up_inputs.inputs(recipe(shards), directory))
        assert teacher is not None
        yield ready, teacher


def kernel_rows() -> list[Row]:
    """Fused beside eager: forward and backward of each of `KERNELS`."""
    rows = []
    for case, backend in KERNELS:
        inputs = case.inputs(torch.float32, CPU)
        timed = {name: steps.step_of(case, name, inputs) for name in (steps.EAGER, backend)}
        for step in timed.values():
            step()
        rounds = [timing.time_round(timed, CPU, number) for number in range(NUM_ROUNDS)]
        ours, eager = ([seconds[name] for seconds in rounds] for name in (backend, steps.EAGER))
        figures = timing_figures(ours, eager, case.num_tokens)
        rows.append(Row(case.name, backend, case.shape, "fp32", "cpu", peak_mib=None, ratio_to=steps.EAGER, **figures))
    return rows


def step_rows(study: StudyRecipe, teacher: str) -> list[Row]:
    """Every arm beside scratch, and Hugging Face's trainer where there is one."""
    with ExitStack() as stack:
        rivals = []
        if PEER_PYTHON:
            alone = study.model_copy(update={"arms": {"scratch": study.arms["scratch"]}})
            rivals = stack.enter_context(peers.started(alone, teacher, PEER_PYTHON))
        return throughput.time_arms(study, NUM_ROUNDS, teacher, rivals)


def cache_rows(study: StudyRecipe, teacher: str) -> list[Row]:
    """A warm teacher cache beside the same run without one."""
    rows = []
    for arm in ("vanilla_kd", "minilm"):
        with tempfile.TemporaryDirectory() as kept:
            *_, uncached, cached = ladder.rungs(run_recipe(study, arm, 0), arm, Path(kept))
            with timed_arms.built([uncached, cached], teacher) as runs:
                timed = {name: run.step for name, run in runs.items()}
                rounds = [timing.time_round(timed, CPU, number) for number in range(NUM_ROUNDS)]
                reference, name = runs
                rows.append(throughput.run_row(runs[name], rounds, runs, reference))
    return rows


def record() -> None:
    """Measure, and write `RECORDED`."""
    logs.quiet_libraries()
    dist.initialise()
    torch.set_num_threads(1)
    with small_study() as (study, teacher):
        rows = [*kernel_rows(), *step_rows(study, teacher), *cache_rows(study, teacher)]
    records.write_json(RECORDED, as_json(rows, facts.facts(PACKAGES)))
    print(
        json.dumps([(row.name, row.backend, row.ratio, row.p20_ms, row.p50_ms, row.p80_ms) for row in rows], indent=1)
    )


if __name__ == "__main__":
    record()
