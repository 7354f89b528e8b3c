"""`bench step`: what is built, timed and compared. Speeds themselves are the business of tests/throughput."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_study import tiny_study, write_inputs

from benchmarks.kernels import bounds
from benchmarks.steps import ladder, made_up_inputs, throughput
from benchmarks.steps import variants as timed_arms
from benchmarks.steps.variants import TimedVariant, Variant, batch_shape
from kd_megatron.data.loader import Loader
from kd_megatron.engine.flops import sequence_cost
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.study.effective import run_recipe

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "benchmarks/recipes/step_6x384.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_every_arm_has_a_row_relative_to_scratch(inputs: Path):
    recipe = tiny_study(inputs)
    rows = throughput.time_arms(recipe, 3, str(inputs / "teacher"))
    assert [row.name for row in rows] == [f"step/{arm}" for arm in recipe.arms]
    for row in rows:
        assert row.p20_ms <= row.p50_ms <= row.p80_ms
        one_decimal = 0.05
        assert row.tokens_per_second == pytest.approx(8 * 16 / row.p50_ms * 1000, rel=1e-3, abs=one_decimal)
        assert (row.ratio_to, row.shape, row.mfu) == ("scratch", "B8 L16", None)
    assert rows[0].ratio == 1.0


def test_ratios_are_of_tokens_where_batches_differ(inputs: Path):
    recipe = tiny_study(inputs, allow_difference=["training.global_batch_size", "training.micro_batch_size"])
    large = {"objective": "scratch", "training.global_batch_size": 32, "training.micro_batch_size": 32}
    arms = {"scratch": {"objective": "scratch"}, "large": large}
    variants = [timed_arms.arm_variant(recipe.model_copy(update={"arms": arms}), arm) for arm in arms]
    with timed_arms.built(variants, None) as runs:
        rounds = [{"step/scratch": 1.0, "step/large": 2.0}]
        row = throughput.run_row(runs["step/large"], rounds, runs, "step/scratch")
    assert (row.shape, row.ratio) == ("B32 L16", 2.0)  # four times the tokens in twice the time


def test_each_arm_gets_its_fastest_micro_batch(inputs: Path, monkeypatch: pytest.MonkeyPatch):
    speeds = {("scratch", 2): 5.0, ("scratch", 4): 9.0, ("minilm", 2): 7.0, ("minilm", 4): 0.0}

    def speed(recipe: StudyRecipe, arm: str, teacher: str | None) -> float:
        return speeds[arm, run_recipe(recipe, arm, 0).training.micro_batch_size]

    monkeypatch.setattr(throughput, "_speed", speed)
    arms = {arm: options for arm, options in tiny_study(inputs).arms.items() if arm in ("scratch", "minilm")}
    best = throughput.at_best_batch(tiny_study(inputs).model_copy(update={"arms": arms}), [2, 4], None)
    sizes = {arm: run_recipe(best, arm, 0).training for arm in arms}
    assert {arm: training.micro_batch_size for arm, training in sizes.items()} == {"scratch": 4, "minilm": 2}
    assert {training.global_batch_size for training in sizes.values()} == {8}
    monkeypatch.undo()
    one = throughput.with_micro_batch(tiny_study(inputs), "minilm", 4)
    assert throughput._speed(one, "minilm", str(inputs / "teacher")) > 0


def executed(variant, teacher: Path, tmp_path: Path) -> tuple[set[str], dict[str, float]]:
    """(modules of student and teacher that one step runs, its losses)."""
    timed = TimedVariant(replace(variant, num_warmup_steps=0), tmp_path / variant.backend, str(teacher))
    found: set[str] = set()
    models = {"student": timed.run.module.student, "teacher": timed.run.step.teacher.encoder}
    for side, model in models.items():
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=f"{side}.{name}": found.add(name))
    micro_batches = timed.run.micro_batches(0)
    timed.run.step.run(micro_batches, 0.0, stop=False)
    reading = timed.run.step.read()
    timed.close()
    return found, {term: value / reading.counts[term] for term, value in reading.sums.items()}


@pytest.mark.parametrize("arm", ["minilm", "vanilla_kd", "tinybert"])
def test_levers_change_what_runs_and_not_what_is_learnt(arm: str, inputs: Path, tmp_path: Path):
    study = run_recipe(tiny_study(inputs), arm, 0)
    variants = {variant.backend: variant for variant in ladder.rungs(study, arm, tmp_path)}
    assert list(variants)[:4] == [ladder.WHOLE, "+ fused losses", "+ teacher stops", "+ student stops"]
    runs = {name: executed(variants[name], inputs / "teacher", tmp_path) for name in list(variants)[:4]}
    losses = [losses for _, losses in runs.values()]
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)  # float32, other kernels
    whole, fused, teacher_stops, student_stops = (modules for modules, _ in runs.values())
    heads = {"student.model.cls.predictions.transform", "teacher.model.cls.predictions.transform"}
    assert heads <= whole == fused
    assert variants[ladder.WHOLE].study.arms[arm]["backend"] == "reference"
    assert "backend" not in variants["+ fused losses"].study.arms[arm]
    if arm == "vanilla_kd":  # which reads both heads
        assert student_stops == whole
    else:
        assert heads - teacher_stops == {"teacher.model.cls.predictions.transform"}
        assert not heads & student_stops
    if arm == "minilm":
        top = "student.model.bert.encoder.layer.1.intermediate"
        assert top in teacher_stops
        assert top not in student_stops


def test_the_ladder_is_timed_beside_scratch(inputs: Path):
    arms = {"scratch": {"objective": "scratch"}, "minilm": {"objective": "minilm", "num_relation_heads": 4}}
    rows = throughput.time_ladder(tiny_study(inputs).model_copy(update={"arms": arms}), 2, str(inputs / "teacher"))
    assert rows[0].name == "step/scratch"
    assert {row.name for row in rows[1:]} == {"ladder/minilm"}
    assert {row.ratio_to for row in rows} == {"scratch"}
    assert [row.backend for row in rows[1:]] == [
        ladder.WHOLE,
        *(name for name in ladder.LEVERS if "compile" not in name),
    ]


@pytest.mark.parametrize("arm", ["minilm", "vanilla_kd", "tinybert"])
def test_the_cached_rung_is_warm(arm: str, inputs: Path, tmp_path: Path):
    study = run_recipe(tiny_study(inputs), arm, 0)
    (cached,) = [variant for variant in ladder.rungs(study, arm, tmp_path / "kept") if "cache" in variant.backend]
    timed = TimedVariant(cached, tmp_path / "run", str(inputs / "teacher"))
    ran: list[str] = []
    timed.run.step.teacher._filler.encoder.register_forward_hook(lambda *_: ran.append("teacher"))
    for _ in range(2 * ladder.POOL_STEPS):
        timed.step()
    assert timed.run.step.teacher.facts()["rows_filled"] == timed.run.loader.num_windows == 4 * 8
    timed.close()
    assert not ran


def test_torch_compile_is_a_rung_where_the_recipe_compiles(inputs: Path, tmp_path: Path):
    study = run_recipe(tiny_study(inputs, training={"compile": True}), "minilm", 0)
    variants = {variant.backend: variant.study.training.compile for variant in ladder.rungs(study, "minilm", tmp_path)}
    assert [name for name, compiled in variants.items() if compiled] == ["+ torch.compile", "+ teacher cache"]


def test_logits_of_all_positions_are_not_cached(inputs: Path, tmp_path: Path):
    arms = {"all": {"objective": "vanilla_kd", "positions": "all"}}
    study = run_recipe(tiny_study(inputs).model_copy(update={"arms": arms}), "all", 0)
    assert [variant.backend for variant in ladder.rungs(study, "all", tmp_path)][-1] == "+ student stops"


def test_the_shipped_recipe_needs_no_corpus_and_no_trained_teacher(tmp_path: Path):
    recipe = config.load(SHIPPED, StudyRecipe, ["data.sequence_length=16", "student.num_layers=1"])
    with made_up_inputs.inputs(recipe, tmp_path) as (ready, teacher):
        assert teacher is not None
        (shards,) = ready.data.shards
        assert Path(shards.path).is_dir()
        loader = Loader(ready.data, 0)
        assert loader.vocab_size == 30_522
        study = run_recipe(ready, "minilm", 0)
        cheap = {"global_batch_size": 2, "micro_batch_size": 2, "precision": "fp32"}
        study = study.model_copy(update={"training": study.training.model_copy(update=cheap)})
        teacher_recipe = study.teacher.model_copy(update={"precision": "fp32"})
        study = study.model_copy(update={"teacher": teacher_recipe})
        timed = TimedVariant(Variant("step/minilm", "auto", study, "minilm"), tmp_path / "run", teacher)
        timed.step()
        timed.close()
    assert not Path(shards.path).exists()
    assert not Path(teacher).exists()


def test_mfu_is_the_model_flops_over_the_data_sheet(inputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    study = run_recipe(tiny_study(inputs), "minilm", 0)
    timed = TimedVariant(Variant("step/minilm", "auto", study, "minilm"), tmp_path, str(inputs / "teacher"))
    assert timed.flops_share(1000.0) is None  # a CPU
    training = study.training.model_copy(update={"precision": "bf16"})
    timed.run.study = study.model_copy(update={"training": training})
    timed.run.device = torch.device("cuda")
    monkeypatch.setattr("kd_megatron.machine.facts.device_name", lambda: "NVIDIA H200")
    run = timed.run
    student, teacher = run.module.student.model.config, run.step.teacher.encoder.model.config
    cost = sequence_cost(run.objective, student, teacher, study)
    speed = 0.5 * bounds.H200.bf16_flops / ((cost.student + cost.teacher_again) / 16)
    assert timed.flops_share(speed) == 0.5
    monkeypatch.setattr("kd_megatron.machine.facts.device_name", lambda: "some other GPU")
    assert timed.flops_share(speed) is None
    timed.run.device = torch.device("cpu")
    timed.close()


@pytest.mark.parametrize(
    ("sizes", "shape"), [((64, 128, 16), "B64 L128 (4x16)"), ((16, 512, 16), "B16 L512"), ((8, 32, 1), "B8 L32 (8x1)")]
)
def test_shapes_state_the_batch_and_its_split(sizes: tuple[int, int, int], shape: str):
    assert batch_shape(*sizes) == shape
