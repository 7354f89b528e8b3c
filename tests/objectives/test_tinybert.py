import math
from dataclasses import replace

import pytest
import torch
from objective_examples import LENGTHS, STUDENT, TEACHER, WIDE_STUDENT, build, example, taps
from tolerances import FLOAT32_LOSS_RELATIVE, HAND_WORKED_RELATIVE, INITIAL_SPREAD_RELATIVE

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.objectives.tinybert import layer_mapping
from kd_megatron.tensors import Needs

RECIPE = {"objective": "tinybert"}


def score(queries, keys, num_heads, head, i, j):
    """One scaled score before softmax; ``queries`` and ``keys`` of one sequence, [L, H, d] of any heads."""
    size = queries[i].numel() // num_heads
    q, k = (x.flatten().tolist()[head * size : (head + 1) * size] for x in (queries[i], keys[j]))
    return sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size)


def attention_by_hand(student, teacher, layers, num_heads):
    return sum(
        (
            score(student.queries[s][b], student.keys[s][b], num_heads, head, i, j)
            - score(teacher.queries[t][b], teacher.keys[t][b], num_heads, head, i, j)
        )
        ** 2
        for s, t in layers.items()
        for b, num_tokens in enumerate(LENGTHS)
        for head in range(num_heads)
        for i in range(num_tokens)
        for j in range(num_tokens)
    )


def hidden_by_hand(student, teacher, layers, projection):
    total = 0.0
    for s, t in layers.items():
        for b, num_tokens in enumerate(LENGTHS):
            for i in range(num_tokens):
                vector = student.hidden[s][b, i].tolist()
                if projection is not None:
                    vector = [sum(w * x for w, x in zip(row, vector, strict=True)) for row in projection]
                total += sum((x - y) ** 2 for x, y in zip(vector, teacher.hidden[t][b, i].tolist(), strict=True))
    return total


@pytest.mark.parametrize(("name", "num_heads"), [("tinybert", 3), ("tinybert, re-split", 2)])
def test_equals_hand_worked_loops(name, num_heads):
    objective, student, teacher, batch = example(name)
    expected = {
        "attention": attention_by_hand(student, teacher, {1: 2, 2: 4}, num_heads),
        "hidden": hidden_by_hand(student, teacher, {0: 0, 1: 2, 2: 4}, objective.projection.weight.tolist()),
    }
    terms = {term: value.item() for term, value in objective(student, teacher, batch).items()}
    assert terms == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    num_pairs = sum(num_tokens**2 for num_tokens in LENGTHS)
    counts = {term: count.item() for term, count in objective.counts(batch).items()}
    assert counts == {"attention": num_pairs * num_heads, "hidden": sum(LENGTHS) * TEACHER.hidden_size}


def test_equal_hidden_sizes_are_compared_without_a_projection():
    objective = build(RECIPE, WIDE_STUDENT)
    assert objective.projection is None
    assert not list(objective.parameters())
    *_, batch = example("tinybert")
    student, teacher = taps(objective.needs_student, WIDE_STUDENT, 1), taps(objective.needs_teacher, TEACHER, 2)
    expected = hidden_by_hand(student, teacher, {0: 0, 1: 2, 2: 4}, None)
    assert objective(student, teacher, batch)["hidden"].item() == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)


def test_one_projection_without_bias_is_shared_by_all_layers():
    for objective in (build(RECIPE), build({**RECIPE, "projection": "always"}, WIDE_STUDENT)):
        (weight,) = objective.parameters()
        assert weight.shape == (TEACHER.hidden_size, objective.student.hidden_size)


def test_the_projection_starts_as_bert_does():
    torch.manual_seed(0)
    big = replace(STUDENT, hidden_size=300), replace(TEACHER, hidden_size=600)
    weight = build(RECIPE, *big).projection.weight
    assert weight.std().item() == pytest.approx(0.02, rel=INITIAL_SPREAD_RELATIVE)


def test_the_projection_computes_in_the_dtype_of_the_student():
    """As a layer of a bf16 student does; the difference is then taken in float32."""
    objective, student, teacher, batch = example("tinybert")
    objective.float()
    hidden = {layer: tensor.detach().bfloat16() for layer, tensor in student.hidden.items()}
    narrow = type(student)(queries=student.queries, keys=student.keys, hidden=hidden)
    projected = {layer: tensor @ objective.projection.weight.bfloat16().T for layer, tensor in hidden.items()}
    expected = hidden_by_hand(
        type(student)(hidden={layer: tensor.double() for layer, tensor in projected.items()}),
        type(teacher)(hidden={layer: tensor.float() for layer, tensor in teacher.hidden.items()}),
        {0: 0, 1: 2, 2: 4},
        None,
    )
    single = type(teacher)(
        queries=teacher.queries,
        keys=teacher.keys,
        hidden={layer: tensor.float() for layer, tensor in teacher.hidden.items()},
    )
    actual = objective(narrow, single, batch)["hidden"]
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected, rel=FLOAT32_LOSS_RELATIVE)


def test_layers_are_mapped_uniformly():
    assert layer_mapping(6, 12) == {0: 0, 1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}
    assert layer_mapping(4, 4) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
    objective = build(RECIPE)
    assert objective.needs_student == Needs(queries=(1, 2), keys=(1, 2), hidden=(0, 1, 2))
    assert objective.needs_teacher == Needs(queries=(2, 4), keys=(2, 4), hidden=(0, 2, 4))


def test_is_zero_when_the_student_is_the_teacher():
    objective = build(RECIPE, TEACHER, TEACHER)
    *_, batch = example("tinybert")
    same = taps(objective.needs_student, TEACHER, seed=2)
    assert [term.item() for term in objective(same, same, batch).values()] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"projection": "never"}, "projection: Input should be 'auto' or 'always'"),
        ({"num_relation_head": 2}, "did you mean 'num_relation_heads'"),
        ({"backend": "gram"}, "unknown backend 'gram'"),
    ],
)
def test_refuses_options(change, says):
    with pytest.raises(RecipeError, match=says):
        parse_options({**RECIPE, **change}, "arms.tinybert")


@pytest.mark.parametrize(
    ("change", "student", "teacher", "says"),
    [
        ({}, STUDENT, None, "objective tinybert without a teacher"),
        (
            {},
            replace(STUDENT, num_layers=3),
            TEACHER,
            r"(?s)3 student layers do not divide 4.*student of 1, 2, 4 layers",
        ),
        (
            {},
            replace(STUDENT, num_attention_heads=2),
            TEACHER,
            r"(?s)2 attention heads.*set num_relation_heads.*1, 2, 3, 6",
        ),
        ({"num_relation_heads": 4}, STUDENT, TEACHER, r"(?s)4 does not divide both hidden sizes.*one of 1, 2, 3, 6"),
    ],
)
def test_refuses_models(change, student, teacher, says):
    with pytest.raises(ModelError, match=says):
        build({**RECIPE, **change}, student, teacher)


def test_flops_by_hand():
    # L = 2, D_s = 12, D_t = 18, H = 3. A layer's attention: 2*4*(12 + 18) + 4*4*12 + 7*3*4 = 516.
    # A hidden state: 5*2*18 + 6*2*12*18 = 2772. Two layers, three hidden states.
    assert build(RECIPE).flops(2, 1) == 2 * 516 + 3 * 2772
