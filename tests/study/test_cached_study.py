"""A whole study whose students share a teacher cache: the second seed finds what the first one filled."""

import json

import pytest
from tiny_study import tiny_study, write_inputs
from tolerances import FLOPS_RELATIVE

from kd_megatron.analysis import results
from kd_megatron.report.study.page import write_report
from kd_megatron.study.runner import run_study

POOL = 40  # windows


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    recipe = tiny_study(
        inputs,
        data={"mask_seed": 3, "unique_tokens": POOL * 16},
        teacher={"cache": {"path": str(inputs / "cache"), "num_students": 2}},
        budget={"tokens": None, "flops": 4e8},
        seeds=[0, 1],
    )
    arms = {name: recipe.arms[name] for name in ("scratch", "vanilla_kd", "minilm")}
    directory = tmp_path_factory.mktemp("study") / "tiny"
    run_study(recipe.model_copy(update={"arms": arms}), directory, write_report)
    return directory


def test_the_second_seed_finds_what_the_first_one_filled_and_both_are_charged_alike(study):
    found = results.load(study)
    assert found.missing == []
    for arm in ("vanilla_kd", "minilm"):
        one, two = found.runs[arm].values()
        caches = [run.summary.teacher.cache for run in (one, two)]
        assert [cache.rows_filled for cache in caches] == [POOL, 0]
        assert one.summary.tokens == two.summary.tokens > 2 * POOL * 16
        assert one.account("teacher", "flops") == pytest.approx(two.account("teacher", "flops"), rel=FLOPS_RELATIVE)
        assert one.account("teacher_for_others", "seconds") > 0 == two.account("teacher_for_others", "seconds")
    assert all(run.summary.teacher is None for run in found.runs["scratch"].values())


def test_plan_and_ledger_agree_on_the_steps(study):
    from kd_megatron.planner.plan import plan

    found = results.load(study)
    for entry in plan(found.recipe).arms:
        assert {run.summary.steps for run in found.runs[entry.arm].values()} == {entry.steps}


def test_the_report_says_what_was_kept_and_that_masks_are_fixed(study):
    markdown = (study / "report" / "report.md").read_text()
    assert "Masks are fixed (data.mask_seed 3)" in markdown
    assert "hidden state 3 in bfloat16, 64 bytes per token" in markdown
    assert "the 64 likeliest tokens at masked positions, at temperature 2" in markdown
    assert f"{POOL} windows written" in markdown
    assert markdown.count("at its first visit, divided by 2 students.") == 2
    checks = json.loads((study / "report" / "results.json").read_text())["tables"]["fairness"]
    assert "DIFFERS" not in {row["result"] for row in checks}
