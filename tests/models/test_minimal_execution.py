"""Which modules run: what no tap needs does not, in teacher and student alike."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_shards import VOCAB_SIZE, write_tokenizer
from tiny_study import ARMS, write_teacher

from kd_megatron.models.build import build_student, load_teacher, model_config, shape_of
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.objectives import of_arm
from kd_megatron.recipe import EncoderRecipe
from kd_megatron.tensors import Batch

RECIPE = EncoderRecipe(hidden_size=24, num_layers=2, num_attention_heads=4, intermediate_size=48, max_positions=64)
# (objective, model) -> how often query, key and value projections, feed-forwards and head transforms run.
# The student has 2 layers, the teacher 4.
EXPECTED = {
    ("scratch", "student"): (6, 2, 1),
    ("vanilla_kd", "student"): (6, 2, 1),
    ("minilm", "student"): (6, 1, 0),
    ("tinybert", "student"): (6, 2, 0),
    ("vanilla_kd", "teacher"): (12, 4, 1),
    ("minilm", "teacher"): (12, 3, 0),
    ("tinybert", "teacher"): (12, 4, 0),
}


def executed(encoder: TappedEncoder) -> tuple[int, int, int]:
    """Counts of modules whose forward ran, by kind."""
    names: Counter[str] = Counter()
    for name, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: names.update([name]))  # type: ignore[misc]
    ids = torch.randint(5, VOCAB_SIZE, (2, 16))
    positions = torch.arange(3).repeat(2, 1)
    encoder(Batch(ids, ids, None, positions, ids[:, :3], torch.arange(2)))
    assert max(names.values()) == 1, "a module ran twice"
    kinds = (("query", "key", "value"), ("intermediate.dense",), ("predictions.transform",))
    return tuple(sum(count for name, count in names.items() if name.endswith(ends)) for ends in kinds)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("teacher")
    write_tokenizer(directory / "tokenizer")
    return str(write_teacher(directory / "teacher", directory / "tokenizer"))


def build(arm: str, options: dict[str, Any], teacher_path: str) -> Any:
    student = build_student(RECIPE, VOCAB_SIZE, {}, 0)
    parsed = of_arm.parse_options(ARMS[arm] | options, where="test")
    return student, of_arm.build(parsed, shape_of(student.config), shape_of(model_config(teacher_path)))


@pytest.mark.parametrize(("arm", "model"), EXPECTED)
def test_nothing_runs_that_no_tap_needs(arm: str, model: str, teacher_path: str) -> None:
    student, objective = build(arm, {}, teacher_path)
    if model == "student":
        encoder = TappedEncoder(student, objective.needs_student)
    else:
        encoder = load_teacher(teacher_path, torch.float32, objective.needs_teacher, torch.device("cpu"))
    assert executed(encoder) == EXPECTED[arm, model]


def test_a_middle_layer_stops_the_student_there(teacher_path: str) -> None:
    student, objective = build("minilm", {"student_layer": 1, "relations": {"values": 1.0}}, teacher_path)
    assert executed(TappedEncoder(student, objective.needs_student)) == (1, 0, 0)


def test_a_student_that_may_not_stop_runs_whole(teacher_path: str) -> None:
    student, objective = build("minilm", {}, teacher_path)
    assert executed(TappedEncoder(student, objective.needs_student, whole=True)) == (6, 2, 0)
