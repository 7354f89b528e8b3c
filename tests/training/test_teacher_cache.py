"""With a teacher cache a run learns what it learns without, whoever filled it, whatever happened to it meanwhile."""

import functools
import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import yaml
from curves import Curve, curve, largest_difference, learn
from safetensors.torch import load_file
from tiny_study import tiny_study, write_inputs, write_teacher
from tolerances import CACHE_BF16_RELATIVE, CACHE_TOP_ALL_RELATIVE, PARITY_FLOAT32_RELATIVE

from kd_megatron.errors import OutputError, RecipeError
from kd_megatron.planner.plan import plan
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.training import cached_teacher
from kd_megatron.training.cached_teacher import CachedTeacher
from kd_megatron.training.setup import prepare_run

NUM_STEPS = 80  # of 8 windows: 10 epochs; twice what the tolerances are for
POOL = 64  # windows
DISTILLING = ("minilm", "tinybert", "vanilla_kd")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("cache"))


def study(inputs: Path, cache_path: Path | None, **changes: Any) -> StudyRecipe:
    """The tiny study on a small pool with fixed masks; with a cache where one is named."""
    options = changes.pop("cache", {})
    data = {"mask_seed": 7, "unique_tokens": POOL * 16} | changes.pop("data", {})
    teacher = {"cache": {"path": str(cache_path), "max_gib": 0.1, **options}} if cache_path else {}
    return tiny_study(inputs, data=data, teacher=teacher | changes.pop("teacher", {}), **changes)


@pytest.fixture(scope="module")
def without_cache(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Curve]:
    """What an arm learns beside the teacher itself."""

    @functools.cache
    def learned(arm: str) -> Curve:
        directory = tmp_path_factory.mktemp(arm)
        return curve(study(inputs, None), arm, directory, inputs / "teacher", NUM_STEPS, rate=1e-3)

    return learned


class Student:
    """Takes steps of a run and counts how often the teacher runs."""

    def __init__(self, recipe: StudyRecipe, arm: str, directory: Path, seed: int = 0) -> None:
        assert recipe.teacher is not None
        self.run = prepare_run(recipe, arm, seed, directory, recipe.teacher.path)
        assert isinstance(self.run.step.teacher, CachedTeacher)
        self.teacher = self.run.step.teacher
        self.teacher_forwards = 0
        self.teacher.encoder.model.base_model.embeddings.register_forward_hook(self._count)  # type: ignore[operator]

    def _count(self, *_: Any) -> None:
        self.teacher_forwards += 1

    def learn(self, num_steps: int) -> Curve:
        """Losses and gradient norms, step by step."""
        return learn(self.run, num_steps, rate=3e-3)

    def close(self) -> dict[str, Any]:
        """End the run; what its summary would say of the cache."""
        facts = self.teacher.facts()
        self.run.close()
        return facts


@pytest.fixture
def student(inputs: Path, tmp_path: Path) -> Callable[..., Student]:
    """Students of ``tmp_path``/cache, by arm and seed."""
    made: list[Student] = []

    def make(arm: str = "minilm", seed: int = 0, **changes: Any) -> Student:
        made.append(Student(study(inputs, tmp_path / "cache", **changes), arm, tmp_path / f"run{len(made)}", seed))
        return made[-1]

    return make


@pytest.mark.parametrize("arm", ["minilm", "tinybert"])
def test_losses_are_those_of_the_teacher_within_bf16_and_reading_is_as_good_as_filling(
    inputs: Path, tmp_path: Path, without_cache: Callable[[str], Curve], arm: str
) -> None:
    def learned(name: str) -> Curve:
        recipe = study(inputs, tmp_path / "cache")
        return curve(recipe, arm, tmp_path / name, inputs / "teacher", NUM_STEPS, rate=1e-3)

    filled, read = learned("filling"), learned("reading")
    assert read == filled
    assert 0 < largest_difference(without_cache(arm), filled) <= CACHE_BF16_RELATIVE


@pytest.mark.parametrize("arm", ["minilm", "tinybert"])
def test_of_a_bf16_teacher_nothing_is_lost(inputs: Path, tmp_path: Path, arm: str) -> None:
    def learned(name: str, cache: Path | None) -> Curve:
        recipe = study(inputs, cache, teacher={"precision": "bf16"})
        return curve(recipe, arm, tmp_path / name, inputs / "teacher", 12, rate=3e-3)

    assert largest_difference(learned("a", None), learned("b", tmp_path / "cache")) <= PARITY_FLOAT32_RELATIVE


@pytest.mark.parametrize(("top_k", "lowest"), [(300, 1 - CACHE_TOP_ALL_RELATIVE), (64, 0.2)])
def test_vanilla_kd_from_the_likeliest_tokens_is_a_lower_bound_and_exact_with_all(
    inputs: Path, tmp_path: Path, without_cache: Callable[[str], Curve], top_k: int, lowest: float
) -> None:
    def learned(name: str) -> Curve:
        recipe = study(inputs, tmp_path / "cache", cache={"top_k": top_k})
        return curve(recipe, "vanilla_kd", tmp_path / name, inputs / "teacher", NUM_STEPS, rate=1e-3)

    without, filled, read = without_cache("vanilla_kd"), learned("filling"), learned("reading")
    assert read == filled
    assert filled[0]["mlm"] == without[0]["mlm"]
    assert lowest <= filled[0]["kd"] / without[0]["kd"] <= 1 + CACHE_TOP_ALL_RELATIVE
    if top_k == 300:
        assert largest_difference(without, filled) <= CACHE_TOP_ALL_RELATIVE


@pytest.mark.parametrize("arm", DISTILLING)
def test_a_second_student_finds_it_filled_and_never_runs_the_teacher(student: Callable[..., Student], arm: str) -> None:
    first = student(arm)
    first.learn(POOL // 8)
    assert first.teacher_forwards == POOL // 8
    first.learn(POOL // 4)
    assert first.teacher_forwards == POOL // 8  # epochs 2 and 3 are read
    facts = first.close()
    assert (facts["rows_filled"], facts["rows_read"], facts["rows_present"]) == (POOL, 2 * POOL, POOL)
    assert facts["bytes_per_token"] * 16 * POOL <= facts["gib_on_disk"] * 2**30
    second = student(arm, seed=3)
    second.learn(POOL // 8)
    assert second.teacher_forwards == 0
    assert second.close()["rows_filled"] == 0


def test_a_larger_pool_goes_on_with_the_rows_of_a_smaller_one(student: Callable[..., Student]) -> None:
    small = student(data={"unique_tokens": 24 * 16})
    small.learn(4)
    assert small.close()["rows_filled"] == 24
    large = student(seed=1)
    large.learn(POOL // 8)
    facts = large.close()
    assert (facts["rows_filled"], facts["rows_read"]) == (POOL - 24, 24)


def test_reading_that_is_slower_than_the_teacher_is_said_once(
    student: Callable[..., Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cached_teacher, "say", said.append)
    monkeypatch.setattr(cached_teacher, "ROWS_TO_JUDGE", 1)
    learner = student()
    learner.learn(NUM_STEPS)
    store, said_before = learner.teacher.store, len(said)
    assert store.fill_cost is not None
    assert 0.0 < store.fill_cost.teacher_seconds < store.fill_cost.seconds
    for made, expected in ((1e9, 0), (1e-9, 1), (1e-9, 1)):
        learner.teacher._has_warned = learner.teacher._has_warned and made < 1.0
        store.fill_cost = replace(store.fill_cost, teacher_seconds=made * store.fill_cost.teacher_rows)
        learner.teacher.look_up(learner.run.loader.batch(0, 4))
        assert len(said) == expected + said_before
    assert "is slower than the teacher" in said[-1]
    learner.close()


def test_a_flipped_bit_is_found_and_its_row_made_again(student: Callable[..., Student], tmp_path: Path) -> None:
    first = student()
    reference = first.learn(12)
    first.close()
    (path,) = (tmp_path / "cache").glob("*/rows-00000.bin")
    damaged = bytearray(path.read_bytes())
    damaged[5 * len(damaged) // 7] ^= 1
    path.write_bytes(damaged)
    second = student()
    assert second.learn(12) == reference
    assert second.teacher_forwards == 1
    assert second.close()["rows_filled"] == 1


def test_a_micro_batch_that_is_there_in_part_takes_what_is_stored(student: Callable[..., Student]) -> None:
    """Also where the store says something else than the teacher would: the stored row is the truth."""
    first = student()
    first.learn(1)
    batch = first.run.loader.batch(0, 8)
    row = first.run.loader.pool_rows(batch.sample_ids.numpy()[:1])
    strange = first.teacher.contents.encode({3: torch.full((1, 16, 32), 0.5)} | {}, None)
    first.teacher.store.write(row, strange)
    mixed = torch.cat([batch.sample_ids[:1], batch.sample_ids[1:] + 8])  # one kept window, seven new ones
    other = first.run.loader.batch(8, 8)
    parts = {name: torch.cat([getattr(batch, name)[:1], getattr(other, name)[:7]]) for name in (
        "input_ids", "clean_ids", "masked_positions", "labels")}  # fmt: skip
    taps = first.teacher(type(batch)(**parts, attention_mask=None, sample_ids=mixed), "masked")
    assert first.teacher_forwards == 2
    queries = taps.queries[4]
    assert (queries[0] == queries[0, :1]).all()  # of the constant hidden state
    assert not (queries[1] == queries[1, :1]).all()
    first.close()


@pytest.mark.parametrize("what", ["mask_seed", "teacher", "data", "teacher_precision"])
def test_another_mask_seed_teacher_text_or_precision_is_refused(
    student: Callable[..., Student], inputs: Path, tmp_path: Path, what: str
) -> None:
    student().close()
    other = write_teacher(tmp_path / "other", inputs / "shards" / "tokenizer", initializer_range=0.1)
    changes: dict[str, dict[str, Any]] = {
        "mask_seed": {"data": {"mask_seed": 8}},
        "teacher": {"teacher": {"path": str(other)}},
        "data": {"data": {"seed": 1}},
        "teacher_precision": {"teacher": {"precision": "bf16"}},
    }
    with pytest.raises(OutputError, match="filled for something else") as caught:
        student(**changes[what])
    assert caught.value.given.count(" in the cache, ") == 1
    assert f"{what}" in caught.value.given
    if what == "mask_seed":
        assert "mask_seed: 7 in the cache, 8 in the recipe" in caught.value.given
    student().close()  # the refused one left it as it was, and no lock


def test_a_cache_that_would_grow_too_large_is_refused_before_the_first_step(student: Callable[..., Student]) -> None:
    with pytest.raises(OutputError, match=r"64 windows of 1,024 bytes") as caught:
        student(cache={"max_gib": 1e-6})
    assert "teacher.cache.max_gib" in str(caught.value)


def test_recipes_that_cannot_be_cached_are_refused(inputs: Path, tmp_path: Path) -> None:
    raw = study(inputs, tmp_path).model_dump(mode="json")
    raw["data"]["mask_seed"] = None
    with pytest.raises(RecipeError, match=r"teacher\.cache needs data\.mask_seed.*write data\.mask_seed"):
        config.validate(StudyRecipe, raw, where="test")
    everywhere = {"vanilla_kd": {"objective": "vanilla_kd", "positions": "all"}}
    with pytest.raises(RecipeError, match="positions: masked"):
        plan(study(inputs, tmp_path).model_copy(update={"arms": everywhere}))


# --- as processes -----------------------------------------------------------------------------------------


def arguments(directory: Path, recipe: StudyRecipe) -> list[str]:
    directory.mkdir()
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    command = ["-m", "kd_megatron", "pretrain", str(path), "--arm", "tinybert"]
    return [*command, "--output", str(directory / "run")]


def rows_kept(cache: Path) -> int:
    return sum(len(path.read_bytes()) // 4 - path.read_bytes().count(b"\0\0\0\0") for path in cache.glob("*/index.bin"))


def test_kill_9_while_it_fills_then_the_same_command_ends_with_the_same_bits(inputs: Path, tmp_path: Path) -> None:
    def recipe(name: str) -> StudyRecipe:
        training = {"micro_batch_size": 4, "checkpoint_every_steps": 7}
        data = {"unique_tokens": 400 * 16}
        return study(inputs, tmp_path / name / "cache", data=data, training=training, budget={"tokens": 70 * 8 * 16})

    whole, killed = (arguments(tmp_path / name, recipe(name)) for name in ("whole", "killed"))
    (process,), undisturbed = processes.start(killed), processes.start(whole)
    moment = random.Random(time.time_ns()).randrange(20, 380)
    deadline = time.monotonic() + 200
    while rows_kept(tmp_path / "killed" / "cache") < moment:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = rows_kept(tmp_path / "killed" / "cache")
    assert not (tmp_path / "killed" / "run" / "summary.json").exists(), "it was too fast to be killed"
    processes.run(killed)
    processes.finish(undisturbed)
    one, two = (load_file(tmp_path / name / "run" / "export" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one), f"killed with {kept} rows"
    summaries = [json.loads((tmp_path / name / "run" / "summary.json").read_text()) for name in ("whole", "killed")]
    flops = [summary["ledger"]["accounts"]["teacher"]["flops"] for summary in summaries]
    assert flops[0] == flops[1]
    caches = [summary["teacher"]["cache"] for summary in summaries]
    assert [cache["rows_present"] for cache in caches] == [400, 400]
    assert caches[1]["rows_filled"] <= 400 - kept + 4  # a micro-batch that was begun is made again


def test_two_ranks_fill_and_read_one_store_as_one_process_does(inputs: Path, tmp_path: Path) -> None:
    worker = str(Path(__file__).parent / "cache_worker.py")
    outputs = {ranks: tmp_path / str(ranks) / "curves.json" for ranks in (1, 2)}
    for output in outputs.values():
        output.parent.mkdir()
    for started in [processes.start([worker, str(inputs), str(output)], ranks) for ranks, output in outputs.items()]:
        processes.finish(started)
    curves: dict[int, dict[str, Curve]] = {ranks: json.loads(output.read_text()) for ranks, output in outputs.items()}
    for rows in curves.values():
        assert rows["fill"] == rows["read"]
        assert rows["facts"] == {"rows_filled": POOL, "rows_read": 0, "rows_present": POOL}
    assert largest_difference(curves[1]["fill"], curves[2]["fill"]) <= PARITY_FLOAT32_RELATIVE
