"""The model of the published study's code: its count against torch's, its token counts against the published ones."""

from pathlib import Path

import pytest
from rich.console import Console
from tolerances import (
    FLOPS_RELATIVE,
    PUBLISHED_RATIO,
    PUBLISHED_TOKENS_RELATIVE,
    PUBLISHED_TWELVE_LAYERS_RELATIVE,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from benchmarks.published_study import eager_losses, eager_step, published_code
from benchmarks.published_study.published_code import ANCHOR, PUBLISHED, as_published, reconstructed_tokens
from benchmarks.published_study.published_code_view import show
from kd_megatron.cli import main
from kd_megatron.engine import flops
from kd_megatron.errors import RecipeError
from kd_megatron.machine.gpus import GPUS
from kd_megatron.models.build import config_or_known
from kd_megatron.recipe import StudyRecipe, config
from kd_megatron.report.study.published import REFERENCE
from kd_megatron.tensors import Needs

ROOT = Path(__file__).resolve().parents[2]
DISTILLING = ("vanilla_kd", "minilm", "tinybert")
STUDENT = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
TEACHER = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)


def recipe(name: str, *overrides: str) -> StudyRecipe:
    return config.load(str(ROOT / f"recipes/{name}.yaml"), StudyRecipe, list(overrides))


@pytest.mark.parametrize("arm", eager_losses.LOSSES)
def test_products_are_those_of_torchs_counter(arm):
    with FlopCounterMode(display=False) as counter:
        counted = eager_step.count(arm, STUDENT, TEACHER)
    assert counted.flops_per_token * counted.num_tokens == pytest.approx(counter.get_total_flops(), rel=FLOPS_RELATIVE)


def test_no_kd_costs_by_hand_what_is_counted():
    """Layers three times (forward, to inputs, to weights), as here: there is nothing that the study's No-KD wastes."""
    counted = eager_step.count("scratch", STUDENT, TEACHER)
    by_hand = flops.student_flops(STUDENT, Needs(logits=True), eager_step.LENGTH, eager_step.MASKED)
    assert counted.flops_per_token * eager_step.LENGTH == pytest.approx(by_hand, rel=FLOPS_RELATIVE)


def test_bytes_of_one_operation_by_hand():
    import torch

    with eager_step.Kernels() as kernels:
        left = torch.empty(4, 8, device="meta", dtype=torch.float16)
        product = left @ torch.empty(8, 2, device="meta", dtype=torch.float16)
        product.transpose(0, 1)  # a view moves nothing
    *_, (count, moved) = kernels.found
    assert (count, moved) == (2 * 4 * 8 * 2, 2 * (4 * 8 + 8 * 2 + 4 * 2))


@pytest.mark.parametrize("num_dimensions", [2, 3])
def test_the_bias_of_a_linear_layer_is_read_and_written_once_more(num_dimensions):
    import torch

    linear = eager_step.Linear(8, 2, device="meta", dtype=torch.float16)
    with eager_step.Kernels() as kernels:
        states = torch.empty(*[4, 1, 8][-num_dimensions:], device="meta", dtype=torch.float16)
        linear(states)
    rows = states.numel() // 8
    assert [moved for _, moved in kernels.found][-2:] == [2 * (rows * 8 + 8 * 2 + rows * 2), 2 * (2 + 2 * rows * 2)]


def test_mean_squares_keep_their_squares():
    import torch

    left, right = (torch.empty(4, 8, device="meta", requires_grad=True) for _ in range(2))
    with eager_step.Kernels() as kernels:
        eager_losses._mean_square(left, right.detach()).backward()
    squares, mean, _one, back = (moved / 4 for _, moved in kernels.found)
    assert (squares, mean, back) == (3 * 32, 32 + 1, 3 * 32 + 1)


def test_divergences_keep_what_they_choose_from():
    """Logarithm, difference, product, comparison (a byte for each), zeros, choice, sum."""
    import torch

    left, right = (torch.empty(4, 8, device="meta", requires_grad=True) for _ in range(2))
    with eager_step.Kernels() as kernels:
        eager_losses._divergence(left, right.detach())
    tensors = [moved / (4 * 32) for _, moved in kernels.found]
    assert tensors == [2, 3, 3, 1.25, 1, 3.25, 1 + 1 / 32]


def test_a_kernel_takes_the_longer_of_products_and_bytes():
    gpu = GPUS["a100"]
    counted = eager_step.Counted([(gpu.half_flops, 1.0), (1.0, 3 * gpu.bytes_per_second)], num_tokens=8)
    assert counted.tokens_per_second(gpu) == pytest.approx(8 / 4)


def test_the_number_that_is_put_in_comes_out():
    for gpu in GPUS.values():
        assert reconstructed_tokens(ANCHOR, REFERENCE, gpu) == pytest.approx(ANCHOR.tokens[REFERENCE])


def reconstructions(setting):
    gpu = GPUS[published_code.ASSUMED_GPU]
    return {arm: reconstructed_tokens(setting, arm, gpu) for arm in setting.tokens}


@pytest.mark.parametrize("arm", DISTILLING)
def test_each_published_ratio_is_predicted(arm):
    tokens = reconstructions(ANCHOR)
    assert tokens[arm] / tokens[REFERENCE] == pytest.approx(0.57, abs=PUBLISHED_RATIO)


@pytest.mark.parametrize("setting", PUBLISHED[:2], ids=lambda setting: setting.name)
def test_the_published_token_counts_are_predicted(setting):
    """4.6B and 2.6B, 27.9B and 15.4-15.6B: from No-KD's 4.6B alone."""
    tokens = reconstructions(setting)
    for arm, reported in setting.tokens.items():
        assert tokens[arm] == pytest.approx(reported, rel=PUBLISHED_TOKENS_RELATIVE), arm


def test_what_is_assumed_of_the_teachers_head_decides():
    """At all positions it would cost what docs/planner.md says."""
    student, teacher = published_code._student(ANCHOR.num_layers, ANCHOR.teacher), config_or_known(ANCHOR.teacher)
    gpu = GPUS[published_code.ASSUMED_GPU]
    speed = published_code.counted(REFERENCE, ANCHOR.num_layers, ANCHOR.teacher).tokens_per_second(gpu)
    ratios = [
        eager_step.count(arm, student, teacher, teacher_is_sparse=False).tokens_per_second(gpu) / speed
        for arm in DISTILLING
    ]
    assert [f"{ratio:.2f}" for ratio in ratios] == ["0.51", "0.53", "0.53"]


@pytest.mark.long
def test_twelve_layers_are_predicted_from_six():
    setting = PUBLISHED[2]
    tokens = reconstructions(setting)
    for arm, reported in setting.tokens.items():
        assert tokens[arm] == pytest.approx(reported, rel=PUBLISHED_TWELVE_LAYERS_RELATIVE), arm


def test_what_is_not_spent_here_explains_the_difference():
    """Levers and the loss are all there is between the two counts."""
    for row in as_published(recipe("paper_6l")).rows[1:]:
        assert row.flops_per_token_here is not None
        rest = row.flops_per_token_there - sum(row.saved.values()) - row.flops_per_token_here
        assert abs(rest) < 0.02 * row.flops_per_token_here
        assert row.tokens_here >= 0.999 * row.reconstructed_tokens


def test_it_says_what_is_put_in_and_what_is_predicted():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(as_published(recipe("paper_6l_limited")), console)
    text = " ".join(console.export_text().split())
    assert "…" not in text
    for words in ("27.9B", "15.4B", "15.6B", "one published number", "No-KD's 4.6B tokens in 4 hours", "reconstructed"):
        assert words in text


@pytest.mark.parametrize("overrides", [["budget.hours=5"], ["student.num_layers=3"], ["budget.flops=1e18"]])
def test_a_setting_that_was_not_published_is_refused(overrides):
    with pytest.raises(RecipeError, match="as-published"):
        as_published(recipe("paper_6l", *overrides))


def test_command_line(tmp_path, capsys):
    path = tmp_path / "published.json"
    assert main.main(["plan", str(ROOT / "recipes/paper_6l.yaml"), "--as-published", "--json", str(path)]) == 0
    assert "4.6B (put in)" in capsys.readouterr().out
    rows = {row["arm"]: row for row in config.read_yaml(path)["rows"]}
    assert rows["vanilla_kd"]["published_tokens"] == 2.6e9
    assert rows["vanilla_kd"]["reconstructed_ratio"] == pytest.approx(0.57, abs=PUBLISHED_RATIO)
