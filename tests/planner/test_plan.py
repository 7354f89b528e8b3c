"""The plan: what a budget buys, repetition, memory, and what it says when it cannot know."""

import math
import shutil

import pytest
from rich.console import Console
from tiny_study import tiny_study, write_inputs

from kd_megatron.cli import main
from kd_megatron.engine.flops import arm_cost
from kd_megatron.errors import DataError, ModelError
from kd_megatron.files.manifest import read_manifest
from kd_megatron.planner.plan import plan
from kd_megatron.planner.plan_view import show


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def text(planned, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(planned, console)
    return console.export_text()


def test_a_flops_budget_buys_whole_steps(inputs):
    recipe = tiny_study(inputs, budget={"tokens": None, "flops": 1e9})
    for entry in plan(recipe).arms:
        per_step = arm_cost(recipe, entry.arm, 300).total_flops_per_token * 8 * 16
        assert entry.steps == math.ceil(1e9 / per_step)
        assert entry.tokens == entry.steps * 8 * 16


def test_accounts_that_are_not_charged_cost_nothing(inputs):
    recipe = tiny_study(inputs, budget={"tokens": None, "flops": 1e9, "charge": ["student"]})
    minilm = next(entry for entry in plan(recipe).arms if entry.arm == "minilm")
    assert minilm.charged_flops_per_token == minilm.cost.student_flops_per_token
    assert minilm.cost.teacher_flops_per_token > 0


def test_a_token_budget_buys_every_arm_the_same(inputs):
    planned = plan(tiny_study(inputs))
    assert {entry.steps for entry in planned.arms} == {20}
    assert planned.arms[0].relative_tokens == 1.0
    assert all(entry.relative_tokens < 1.0 for entry in planned.arms[1:])


def test_a_budget_in_time_is_not_guessed(inputs):
    planned = plan(tiny_study(inputs, budget={"tokens": None, "hours": 1.0}))
    assert {entry.tokens for entry in planned.arms} == {None}
    assert "by the machine's speed" in " ".join(text(planned).split())


def test_epochs_over_the_pool(inputs):
    tokens = read_manifest(inputs / "shards").tokens("train")
    planned = plan(tiny_study(inputs))
    assert planned.pool_tokens == tokens // 14 * 16  # windows of 16 hold 14 tokens of the stream
    assert planned.arms[0].epochs == 20 * 8 * 16 / planned.pool_tokens
    capped = plan(tiny_study(inputs, data={"unique_tokens": 640}))
    assert (capped.pool_tokens, capped.arms[0].epochs) == (640, 4.0)


@pytest.mark.parametrize("unique_tokens", [10**9, 15])
def test_a_pool_that_the_text_is_too_small_for_is_refused_in_any_cell(inputs, unique_tokens):
    with pytest.raises(DataError, match=f"data.unique_tokens={unique_tokens} takes"):
        plan(tiny_study(inputs, grid={"unique_tokens": [512, unique_tokens]}))


def test_epochs_of_several_sources_are_not_planned(inputs, tmp_path):
    shutil.copytree(inputs / "shards", tmp_path / "more")
    shards = [{"path": str(inputs / "shards"), "weight": 0.5}, {"path": str(tmp_path / "more"), "weight": 0.5}]
    planned = plan(tiny_study(inputs, data={"shards": shards}))
    assert {entry.epochs for entry in planned.arms} == {None}
    assert "repeat each in its own time: epochs are not planned" in " ".join(text(planned).split())


def test_memory_falls_with_the_stage(inputs):
    memory = plan(tiny_study(inputs, training={"precision": "bf16"}), num_processes=4).memory
    stages = [memory[f"zero{stage}"][1] for stage in range(4)]
    assert stages[1].optimizer == pytest.approx(stages[0].optimizer / 4)
    assert stages[3].optimizer == stages[2].optimizer == stages[1].optimizer
    assert all(entry.total > entry.step > 0 for _, entry in memory.values())
    assert 0 < memory["zero2_offload"][1].host_bytes < memory["zero2_offload"][1].total
    assert stages[0].host_bytes == 0


def test_activation_checkpointing_takes_less_memory_and_more_flops(inputs):
    kept, again = (plan(tiny_study(inputs, training={"activation_checkpointing": on})) for on in (False, True))
    assert again.memory["zero0"][1].step < kept.memory["zero0"][1].step
    assert again.arms[0].cost.student_flops_per_token > kept.arms[0].cost.student_flops_per_token
    assert "second forward pass" in " ".join(text(again).split())


def test_the_plan_before_the_data_is_prepared(inputs, tmp_path):
    recipe = tiny_study(inputs, data={"shards": [{"path": str(tmp_path / "absent")}]})
    planned = plan(recipe)
    assert (planned.vocab_size, planned.pool_tokens) == (300, None)
    assert "not prepared yet" in text(planned)


def test_a_teacher_that_cannot_be_reached_is_a_clear_error(inputs, tmp_path):
    with pytest.raises(ModelError):
        plan(tiny_study(inputs, teacher={"path": str(tmp_path / "absent")}))


def test_every_row_fits_a_narrow_terminal(inputs):
    shown = text(plan(tiny_study(inputs)), width=80)
    assert "…" not in shown
    for arm in ("scratch", "vanilla_kd", "minilm", "tinybert"):
        assert shown.count(arm) >= 2


def test_command_line(inputs, tmp_path, capsys):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_study(inputs).model_dump(mode="json")))
    assert main.main(["plan", str(path), "budget.tokens=5120", "--procs", "2"]) == 0
    assert "40" in capsys.readouterr().out  # steps of 128 tokens
    assert main.main(["plan", str(path), "--procs", "0"]) == 2
    assert main.main(["report", str(tmp_path)]) == 5
    assert "is not a study" in capsys.readouterr().err


def test_a_teacher_cache_makes_repeats_cheap(inputs, tmp_path):
    cache = {"path": str(tmp_path / "cache"), "num_students": 2}
    data = {"mask_seed": 1, "unique_tokens": 640}
    budget = {"tokens": None, "flops": 1e9}
    without = plan(tiny_study(inputs, data=data, budget=budget))
    planned = plan(tiny_study(inputs, data=data, budget=budget, teacher={"cache": cache}))
    assert list(tmp_path.iterdir()) == []  # planning makes no cache
    assert planned.arms[0] == without.arms[0]
    for entry, before in zip(planned.arms[1:], without.arms[1:], strict=True):
        cost = entry.cost
        assert cost.teacher_again_flops_per_token < cost.teacher_flops_per_token < before.cost.teacher_flops_per_token
        assert entry.steps > before.steps
        repeats = entry.charged_flops_per_token - cost.teacher_flops_per_token + cost.teacher_again_flops_per_token
        tokens = 640 + (1e9 - 640 * entry.charged_flops_per_token) / repeats
        assert entry.steps == math.ceil(tokens / 128)
        mean = 1e9 / tokens
        assert cost.mean_flops_per_token(tokens / 640) == pytest.approx(mean)
    shown = " ".join(text(planned).split())
    assert "repeats" in shown
    assert "divided by 2 students" in shown
    assert "Masks are fixed (data.mask_seed 1)" in shown


def test_a_cache_changes_nothing_before_the_data_repeats(inputs, tmp_path):
    cache = {"path": str(tmp_path / "cache")}
    few = {"tokens": None, "flops": 1e8}
    planned = plan(tiny_study(inputs, data={"mask_seed": 1}, budget=few, teacher={"cache": cache}))
    for entry in planned.arms:
        assert entry.epochs < 1
        assert entry.steps == math.ceil(1e8 / (entry.cost.total_flops_per_token * 128))


def test_a_grid_shows_how_often_each_pool_is_read(inputs):
    whole = plan(tiny_study(inputs))
    planned = plan(tiny_study(inputs, grid={"budgets": [1.0, 2.0], "unique_tokens": [512, None]}))
    found = {(cell.place.budget, cell.place.unique_tokens): cell for cell in planned.cells}
    assert found[1.0, 512].pool_tokens == 512
    assert found[2.0, None].pool_tokens == whole.pool_tokens
    assert [entry.epochs for entry in found[1.0, 512].arms] == [20 * 8 * 16 / 512] * len(planned.arms)
    assert [entry.tokens for entry in found[2.0, None].arms] == [2 * entry.tokens for entry in whole.arms]
    assert found[1.0, None].arms == whole.arms == planned.arms
    assert "2x 512 tokens scratch 40 5.12k 10.00" in " ".join(text(planned).split())
    assert whole.cells == []
    assert "cell" not in text(whole)
    assert planned.to_dict()["cells"][0]["arms"][0]["cost"]["total_flops_per_token"] > 0


def test_power_of_the_recipes_seeds_and_of_a_few_more(inputs):
    recipe = tiny_study(inputs, seeds=[0, 1, 2])
    planned = plan(recipe).power
    # three arms beside scratch, by the probe and by their own heads
    assert (planned.num_contrasts, planned.family, planned.enough) == (6, "contrasts of the report", 7)
    assert list(planned.chances) == [3, 4, 5, 7]
    assert planned.chances[7][2.0] >= 0.8 > planned.chances[5][2.0]
    said = " ".join(text(plan(recipe)).split())
    assert "Power, corrected for 6 contrasts of the report" in said
    assert "The report gives verdicts from 7 on (2 sd found with 80 %): with 3 it will give none." in said
    fixed = plan(tiny_study(inputs, seeds=[0, 1, 2], protocol={"students": 3}))
    assert (fixed.power.num_contrasts, fixed.power.enough) == (3, 6)
    assert fixed.power.chances[3][2.0] == pytest.approx(0.194, abs=0.001)
    assert "The protocol gives verdicts at 3, which it fixes in advance." in " ".join(text(fixed).split())
    assert fixed.to_dict()["power"]["num_contrasts"] == 3


def test_one_arm_has_nothing_to_find(inputs):
    assert plan(tiny_study(inputs).model_copy(update={"arms": {"scratch": {"objective": "scratch"}}})).power is None
