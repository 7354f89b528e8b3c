"""Hours and tokens by a data sheet or a calibration, and what a whole study costs."""

import json
import math
from unittest import mock

import pytest
from rich.console import Console
from tiny_study import tiny_study, write_inputs

from kd_megatron.cli import main
from kd_megatron.errors import RecipeError
from kd_megatron.machine.gpus import GPUS, named_gpu
from kd_megatron.models.build import student_config
from kd_megatron.planner.plan import Hardware
from kd_megatron.planner.plan import plan as plan_with_memory
from kd_megatron.planner.plan_totals import finetune_flops, task_sizes
from kd_megatron.planner.plan_view import show

STEP_TOKENS = 8 * 16
SPEEDS = {"scratch": 4000.0, "vanilla_kd": 2500.0, "minilm": 3000.0, "tinybert": 2000.0}
GLUE = {"tasks": [{"name": "RTE"}, {"name": "CoLA", "max_train_examples": 100}], "epochs": 2, "max_length": 16,
        "grid": {"learning_rates": [1e-4, 2e-4], "batch_sizes": [8]}, "seeds": [0, 1]}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def calibration(tmp_path):
    arms = {arm: {"tokens_per_second": {"p50": p50, "p20": 0.9 * p50, "p80": 1.1 * p50}} for arm, p50 in SPEEDS.items()}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"hardware": {"device": "a test", "num_processes": 1}, "arms": arms}))
    return path


def plan(recipe, num_processes=1, hardware=None):
    with mock.patch("kd_megatron.planner.plan._memory", return_value={}):  # which takes seconds
        return plan_with_memory(recipe, num_processes, hardware)


def hours(inputs, amount, **changes):
    return tiny_study(inputs, budget={"tokens": None, "hours": amount}, **changes)


def test_hours_become_tokens_by_the_data_sheet(inputs):
    """At the stated efficiency every arm spends the same FLOPs in the same hours."""
    recipe = hours(inputs, 1e-9, training={"precision": "fp32"})
    planned = plan(recipe, hardware=Hardware("h100", efficiency=0.5))
    for entry in planned.arms:
        flops = 1e-9 * 3600 * 0.5 * GPUS["h100"].float32_flops
        assert entry.steps == math.ceil(flops / entry.cost.total_flops_per_token / STEP_TOKENS)
        assert entry.flops == entry.tokens * entry.cost.total_flops_per_token
        assert entry.hours == pytest.approx(entry.flops / (0.5 * GPUS["h100"].float32_flops) / 3600)
        assert entry.hours >= 1e-9


def test_precision_is_the_named_gpus(inputs):
    auto = hours(inputs, 1e-6, training={"precision": "auto"})
    assert plan(auto, hardware=Hardware("a100")).recipe.training.precision == "bf16"
    assert plan(auto, hardware=Hardware("v100")).recipe.training.precision == "fp32"  # it has no bfloat16


def test_processes_share_hours_and_split_gpu_hours(inputs):
    one, four = (plan(hours(inputs, 1e-8), n, Hardware("h100")).arms[0] for n in (1, 4))
    assert four.tokens == pytest.approx(4 * one.tokens, rel=0.01)
    gpu_hours = tiny_study(inputs, budget={"tokens": None, "gpu_hours": 1e-8})
    one, four = (plan(gpu_hours, n, Hardware("h100")).arms[0] for n in (1, 4))
    assert four.tokens == one.tokens
    assert four.hours == pytest.approx(one.hours / 4)


def test_hours_become_tokens_by_a_calibration_and_back(inputs, calibration):
    planned = plan(hours(inputs, 1.0), hardware=Hardware(calibration=calibration))
    tokens = {entry.arm: entry.tokens for entry in planned.arms}
    for arm, speed in SPEEDS.items():
        assert 3600 * speed <= tokens[arm] < 3600 * speed + STEP_TOKENS
    counted = plan(tiny_study(inputs), hardware=Hardware(calibration=calibration))
    for entry in counted.arms:
        assert entry.hours == pytest.approx(entry.tokens / SPEEDS[entry.arm] / 3600)


def test_a_calibrated_budget_is_never_overshot(inputs, calibration):
    recipe = tiny_study(inputs, budget={"tokens": None, "hours": 1.0, "calibrate": {}})
    for entry in plan(recipe, hardware=Hardware(calibration=calibration)).arms:
        assert entry.steps == math.floor(3600 * SPEEDS[entry.arm] / STEP_TOKENS)


def test_what_cannot_be_a_speed_is_refused(inputs, calibration, tmp_path):
    recipe = hours(inputs, 1.0)
    cases = {
        "kd_megatron/machine/gpus.py": Hardware("h1000"),
        "--hardware cpu": Hardware("cpu"),
        "--efficiency 1.5": Hardware("h100", efficiency=1.5),
        "without --hardware": Hardware(efficiency=0.3),
        "one source of speed": Hardware("h100", calibration=calibration),
        "cannot be read": Hardware(calibration=tmp_path / "absent.json"),
    }
    for words, hardware in cases.items():
        with pytest.raises(RecipeError) as caught:
            plan(recipe, hardware=hardware)
        assert words in str(caught.value)
    with pytest.raises(RecipeError, match="--procs 1"):
        plan(recipe, 2, Hardware(calibration=calibration))
    content = json.loads(calibration.read_text())
    content["arms"].pop("minilm")
    calibration.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="minilm"):
        plan(recipe, hardware=Hardware(calibration=calibration))


def test_a_calibration_of_another_recipe_is_refused(inputs, calibration):
    content = json.loads(calibration.read_text())
    charge = ["student", "teacher", "loss", "data_wait"]
    content |= {"charge": charge, "precision": "fp32"}
    for entry in content["arms"].values():
        entry["tokens_per_step"] = STEP_TOKENS
    calibration.write_text(json.dumps(content))
    plan(hours(inputs, 1.0), hardware=Hardware(calibration=calibration))
    others = {
        "budget.charge": {"budget": {"tokens": None, "hours": 1.0, "charge": ["student"]}},
        "training.precision bf16": {"training": {"precision": "bf16"}},
        f"tokens per step {2 * STEP_TOKENS}": {"training": {"global_batch_size": 16}},
    }
    for words, changes in others.items():
        recipe = tiny_study(inputs, **{"budget": {"tokens": None, "hours": 1.0}, **changes})
        with pytest.raises(RecipeError, match="a calibration of this recipe") as caught:
            plan(recipe, hardware=Hardware(calibration=calibration))
        assert words in str(caught.value)


def test_names_of_gpus():
    assert named_gpu("RTX 4090") is GPUS["rtx4090"]
    for gpu in GPUS.values():
        assert gpu.half_flops > gpu.float32_flops > 1e12
        assert gpu.source


def test_the_whole_study_is_added_up(inputs):
    recipe = tiny_study(inputs, seeds=[0, 1, 2], finetune=GLUE)
    planned = plan(recipe, hardware=Hardware("h100"))
    totals = {item.what: item for item in planned.totals}
    assert list(totals) == ["students", "validations", "fine-tuning", "controls"]
    assert totals["students"].flops == pytest.approx(3 * sum(entry.flops for entry in planned.arms))
    assert totals["students"].hours == pytest.approx(3 * sum(entry.hours for entry in planned.arms))
    layers = 2 * (8 * 16 * 24**2 + 4 * 16**2 * 24 + 4 * 16 * 24 * 48)  # 2 layers, 16 tokens, by hand
    rows = 2 * 2 * (3 * 2 * (2490 + 100) + 277 + 1043)  # settings x seeds x (3 passes x epochs x train, and dev)
    assert totals["fine-tuning"].flops == pytest.approx(4 * 3 * rows * layers)
    heads, taught = 2 * 2 * 24 * (24 + 300), 2 * 2 * 32 * (32 + 300)
    teacher = 4 * (8 * 16 * 32**2 + 4 * 16**2 * 32 + 4 * 16 * 32 * 64)
    once = [
        18 * body + 5 * (48 + 2) * head + 8 * (body + 2 * head) for body, head in ((layers, heads), (teacher, taught))
    ]
    tuned = rows * layers + rows / 2 * teacher  # the untrained student like the others, the teacher with one seed
    assert totals["controls"].flops == pytest.approx(sum(once) + tuned)


def test_a_floor_in_steps_counts_in_the_plan(inputs):
    study = tiny_study(inputs, finetune=GLUE)
    config, floor = student_config(study.student, 300), study.finetune.model_copy(update={"min_steps": 100})
    layers = 2 * (8 * 16 * 24**2 + 4 * 16**2 * 24 + 4 * 16 * 24 * 48)
    more = finetune_flops(floor, config)[0] - finetune_flops(study.finetune, config)[0]
    assert more == pytest.approx(2 * 2 * 3 * (100 * 8 - 2 * 100) * layers)  # RTE has 623 steps without it


def test_validations_by_hand(inputs):
    """Twice, of 4 arms, a probe on 16 + 2 windows and 8 held-out samples, these by own heads as well in two arms."""
    (item,) = [item for item in plan(tiny_study(inputs)).totals if item.what == "validations"]
    forward = 2 * (8 * 16 * 24**2 + 4 * 16**2 * 24 + 4 * 16 * 24 * 48)
    head = 2 * 2 * 24 * (24 + 300)  # 2 masked positions of 16
    assert item.flops == pytest.approx(
        2 * (4 * (18 * forward + 5 * (48 + 2) * head) + 8 * (4 * forward + (4 + 2) * head))
    )
    assert item.hours is None


def test_tuning_branches_and_a_teacher_of_its_own_are_in_it(inputs):
    encoder = {"hidden_size": 32, "num_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    recipe = tiny_study(
        inputs,
        teacher={"path": None, "train": {"encoder": encoder, "budget": {"tokens": 10 * STEP_TOKENS}}},
        tuning={"learning_rates": [1e-3, 2e-3, 4e-3], "budget": {"tokens": 5 * STEP_TOKENS}},
        markers={"at": [0.5, 1.0], "decay": 0.2},
    )
    planned = plan(recipe)
    totals = {item.what: item.flops for item in planned.totals}
    assert list(totals) == [
        "teacher",
        "tuning",
        "validations before",
        "students",
        "branches",
        "validations",
        "controls",
    ]
    per_token = {entry.arm: entry.cost.total_flops_per_token for entry in planned.arms}
    assert totals["tuning"] == pytest.approx(3 * 5 * STEP_TOKENS * sum(per_token.values()))
    assert totals["branches"] == pytest.approx(0.5 * 0.2 * totals["students"])
    assert totals["teacher"] > 0
    students = totals["validations"] / (2 + 1)  # at half, at the end, and of the branch
    forward = 4 * (8 * 16 * 32**2 + 4 * 16**2 * 32 + 4 * 16 * 32 * 64)  # of the teacher
    head = 2 * 2 * 32 * (32 + 300)
    teacher = 18 * forward + 5 * (48 + 2) * head + 8 * (forward + 2 * head)  # at half, and at its end
    assert totals["validations before"] == pytest.approx(2 * teacher + 3 * students)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "12 trials; at most 28 ("),  # two rounds of one more at both ends
        ({"most_extensions": 0}, "12 trials"),
        ({"num_seeds": 2, "most_extensions": 1}, "12 trials of 2 seeds each; at most 20 ("),
        ({"charged": True}, "12 trials"),  # a fourth of an arm would be more than half of its budget
    ],
)
def test_the_plan_says_how_many_trials_there_are_and_may_be(inputs, section, said):
    trials = {"learning_rates": [1e-3, 2e-3, 4e-3], "budget": {"tokens": 3 * STEP_TOKENS}}
    planned = plan(tiny_study(inputs, tuning=trials | section))
    items = {item.what: item for item in planned.totals}
    assert items["tuning"].note.startswith(said)
    assert ("at most" in items["tuning"].note) == ("at most" in said)
    per_token = sum(entry.cost.total_flops_per_token for entry in planned.arms)
    seeds = section.get("num_seeds", 1)
    assert items["tuning"].flops == pytest.approx(seeds * 3 * 3 * STEP_TOKENS * per_token)
    assert items["validations before"].note == f"{12 * seeds} of trials"


@pytest.mark.parametrize("grid", [None, {"budgets": [1.0, 2.0], "unique_tokens": [None]}])
def test_charged_trials_are_taken_off_an_arms_budget(inputs, grid):
    tuning = {"learning_rates": [1e-3, 2e-3, 4e-3], "budget": {"tokens": 5 * STEP_TOKENS}, "charged": True}
    planned = plan(tiny_study(inputs, tuning=tuning, grid=grid))
    assert {entry.steps for entry in planned.arms} == {20 - 3 * 5}
    students = next(item for item in planned.totals if item.what == "students")
    one = sum(entry.flops for entry in planned.arms)
    assert students.flops == pytest.approx(one * (1 + (40 - 15) / 5) if grid else one)


def test_charged_trials_that_leave_too_little_are_refused(inputs):
    def tuning(steps):
        return {"learning_rates": [1e-3], "budget": {"tokens": steps * STEP_TOKENS}, "charged": True}

    with pytest.raises(RecipeError, match=r"validation\.at"):
        plan(tiny_study(inputs, tuning=tuning(19)))
    with pytest.raises(RecipeError, match=r"tuning\.charged takes"):
        plan(tiny_study(inputs, tuning=tuning(10), grid={"budgets": [0.5], "unique_tokens": [None]}))


def test_a_grid_adds_up_its_cells(inputs):
    recipe = tiny_study(inputs, grid={"budgets": [1.0, 3.0], "unique_tokens": [640, None]})
    alone, grid = plan(tiny_study(inputs)), plan(recipe)
    one, all_of_them = (next(item for item in planned.totals if item.what == "students") for planned in (alone, grid))
    assert all_of_them.flops == pytest.approx(2 * (1 + 3) * one.flops)
    assert "4 cells" in all_of_them.note


def test_own_tasks_are_named_not_guessed(inputs):
    recipe = tiny_study(inputs, finetune=GLUE | {"tasks": [{"name": "mine", "train": "a.tsv", "dev": "b.tsv"}]})
    assert task_sizes(recipe.finetune.tasks[0]) is None

    assert finetune_flops(recipe.finetune, student_config(recipe.student, 300)) == (0.0, ["mine"])


def test_it_all_fits_a_narrow_terminal_and_says_what_is_assumed(inputs):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(plan_with_memory(hours(inputs, 1e-6, finetune=GLUE), hardware=Hardware("h100")), console)
    text = console.export_text()
    assert "…" not in text
    for words in ("assumed efficiency of 0.4", "data sheet", "fine-tuning", "heads", "fits H100"):
        assert words in " ".join(text.split())


def test_json_has_the_whole_plan(inputs, calibration, tmp_path, capsys):
    import yaml

    recipe, path = tmp_path / "tiny.yaml", tmp_path / "plan.json"
    recipe.write_text(yaml.safe_dump(hours(inputs, 1.0).model_dump(mode="json")))
    assert main.main(["plan", str(recipe), "--calibration", str(calibration), "--json", str(path)]) == 0
    assert "measured on a test" in " ".join(capsys.readouterr().out.split())
    written = json.loads(path.read_text())
    planned = plan(hours(inputs, 1.0), hardware=Hardware(calibration=calibration))
    assert {entry["arm"]: entry["steps"] for entry in written["arms"]} == {e.arm: e.steps for e in planned.arms}
    assert written["speed"]["measured"]["minilm"]["p50"] == SPEEDS["minilm"]
    assert written["memory"]["zero0"]["total"] > written["memory"]["zero0"]["step"] > 0
    assert written["recipe"]["budget"]["hours"] == 1.0
