import math
from dataclasses import replace

import numpy
import pytest
from objective_examples import LENGTHS, STUDENT, TEACHER, build, example, taps
from tolerances import HAND_WORKED_RELATIVE

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.objectives.minilm import default_teacher_layer
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.tensors import Needs

RECIPE = {"objective": "minilm", "num_relation_heads": 6}


def relation(vectors):
    """Rows of softmax(X X^T / sqrt(features)) of one relation head of one sequence: [tokens, features]."""
    num_tokens, num_features = vectors.shape
    rows = []
    for i in range(num_tokens):
        weights = [math.exp(vectors[i] @ vectors[j] / math.sqrt(num_features)) for j in range(num_tokens)]
        rows.append([weight / sum(weights) for weight in weights])
    return numpy.array(rows)


def by_hand(student, teacher, num_relation_heads):
    total = 0.0
    for sequence, num_tokens in enumerate(LENGTHS):
        sides = []
        for projection in (teacher, student):
            tokens = projection[sequence, :num_tokens].reshape(num_tokens, -1)  # [tokens, D]
            size = tokens.shape[1] // num_relation_heads
            sides.append([relation(tokens[:, r * size : (r + 1) * size]) for r in range(num_relation_heads)])
        total += sum((p * numpy.log(p / q)).sum() for p, q in zip(*sides, strict=True))
    return total


def test_equals_hand_worked_loops():
    objective, student, teacher, batch = example("minilm")
    terms = objective(student, teacher, batch)
    expected = {
        kind: by_hand(getattr(student, kind)[2].detach().numpy(), getattr(teacher, kind)[4].numpy(), 6)
        for kind in ("queries", "keys", "values")
    }
    assert {kind: term.item() for kind, term in terms.items()} == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    assert {count.item() for count in objective.counts(batch).values()} == {6 * sum(LENGTHS)}
    assert objective.weights == {"queries": 1.0, "keys": 1.0, "values": 1.0}


def test_head_counts_of_the_models_may_differ():
    """Relation heads depend on D alone: the same numbers cut into other attention heads give the same loss."""
    objective, student, teacher, batch = example("minilm")
    recut = taps(objective.needs_student, replace(STUDENT, num_attention_heads=2), seed=1)
    assert recut.queries[2].shape[2:] == (2, 6)
    expected = objective(student, teacher, batch)
    actual = objective(recut, teacher, batch)
    assert all(actual[kind].item() == expected[kind].item() for kind in expected)


def test_is_zero_when_the_student_is_the_teacher():
    objective = build(RECIPE, TEACHER, TEACHER)
    *_, batch = example("minilm")
    teacher = taps(objective.needs_teacher, TEACHER, seed=2)
    student = taps(objective.needs_student, TEACHER, seed=2, requires_grad=True)
    assert [term.item() for term in objective(student, teacher, batch).values()] == [0.0, 0.0, 0.0]


def test_takes_the_last_layer_or_layer_21_of_24():
    assert [default_teacher_layer(n) for n in (1, 6, 12, 24)] == [1, 6, 12, 21]
    large = replace(TEACHER, num_layers=24)
    assert build(RECIPE, STUDENT, large).needs_teacher == Needs(queries=(21,), keys=(21,), values=(21,))
    chosen = build({**RECIPE, "teacher_layer": 3, "student_layer": 1})
    assert chosen.needs_student == Needs(queries=(1,), keys=(1,), values=(1,))
    assert chosen.needs_teacher == Needs(queries=(3,), keys=(3,), values=(3,))


def test_relations_can_be_chosen_and_weighted():
    objective = build({**RECIPE, "relations": {"queries": 0.5, "values": 2.0}})
    assert objective.weights == {"queries": 0.5, "values": 2.0}
    assert objective.needs_student == Needs(queries=(2,), values=(2,))


def test_reads_masked_or_clean_text():
    assert parse_options(RECIPE, "arms.minilm").inputs == "masked"
    assert parse_options({**RECIPE, "inputs": "clean"}, "arms.minilm").inputs == "clean"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"objective": "minilm"}, "missing key num_relation_heads"),
        ({**RECIPE, "num_relation_heads": 0}, "num_relation_heads: Input should be greater than 0"),
        ({**RECIPE, "relations": {}}, "relations: Dictionary should have at least 1 item"),
        ({**RECIPE, "relations": {"query": 1.0}}, "Input should be 'queries', 'keys' or 'values'"),
        ({**RECIPE, "relation": {}}, "did you mean 'relations'"),
    ],
)
def test_refuses_options(recipe, says):
    with pytest.raises(RecipeError, match=says):
        parse_options(recipe, "arms.minilm")


@pytest.mark.parametrize(
    ("change", "teacher", "says"),
    [
        ({}, None, "objective minilm without a teacher"),
        ({"num_relation_heads": 4}, TEACHER, r"(?s)4 does not divide both hidden sizes.*one of 1, 2, 3, 6"),
        ({"teacher_layer": 5}, TEACHER, "teacher_layer 5, but the teacher has 4 layers"),
        ({"student_layer": 3}, TEACHER, "student_layer 3, but the student has 2 layers"),
    ],
)
def test_refuses_models(change, teacher, says):
    with pytest.raises(ModelError, match=says):
        build({**RECIPE, **change}, STUDENT, teacher)


def test_flops_by_hand():
    # L = 2, D_s = 12, D_t = 18, R = 6. Products: 2*4*(12 + 18) + 4*4*12 = 432; entries: 17 * 6 * 4 = 408; 3 relations.
    assert build(RECIPE).flops(2, 1) == 3 * (432 + 408)
