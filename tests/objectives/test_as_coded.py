"""The study's own code, worked out by hand with loops; and the canonical arms beside it stay what they were."""

import math
from dataclasses import replace

import pytest
import torch
from objective_examples import LENGTHS, STUDENT, TEACHER, VOCAB_SIZE, WIDE_STUDENT, batch, build, taps
from tolerances import HAND_WORKED_RELATIVE

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.objectives.words import in_words
from kd_megatron.tensors import IGNORED, Needs

VANILLA = {"objective": "vanilla_kd", "as_coded": True}
MINILM = {"objective": "minilm", "as_coded": True}
TINYBERT = {"objective": "tinybert", "as_coded": True}
LENGTH, NUM_SEQUENCES = max(LENGTHS), len(LENGTHS)
FEWER_HEADS = replace(STUDENT, num_attention_heads=2)  # two heads of six features, against the teacher's three


def example(recipe, student_shape):
    objective = build(recipe, student_shape)
    student = taps(objective.needs_student, student_shape, seed=1, requires_grad=True)
    return objective, student, taps(objective.needs_teacher, TEACHER, seed=2)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def loss(objective, terms):
    counts = objective.counts(batch())
    return sum(objective.weights[name] * term / counts[name] for name, term in terms.items())


# --- vanilla_kd ---


def log_softmax(row):
    normaliser = math.log(sum(math.exp(x) for x in row))
    return [x - normaliser for x in row]


def test_vanilla_kd_averages_over_the_vocabulary_too():
    """`(-softmax(t) * log_softmax(s)).mean() + cross_entropy(s, labels)`, at the masked tokens, in loops."""
    objective, student, teacher = example(VANILLA, STUDENT)
    rows = [(b, k) for b, labels in enumerate(batch().labels.tolist()) for k, label in enumerate(labels)]
    rows = [(b, k) for b, k in rows if batch().labels[b, k] != IGNORED]
    soft = entropy = mlm = 0.0
    for b, k in rows:
        of_student = log_softmax(student.logits.dense()[b, k].tolist())
        of_teacher = log_softmax(teacher.logits.dense()[b, k].tolist())
        soft -= sum(math.exp(t) * s for t, s in zip(of_teacher, of_student, strict=True))
        entropy -= sum(math.exp(t) * t for t in of_teacher)
        mlm -= of_student[batch().labels[b, k]]
    study = soft / (len(rows) * VOCAB_SIZE) + mlm / len(rows)
    constant = entropy / (len(rows) * VOCAB_SIZE)  # of the teacher: no gradient, and not part of our term
    ours = loss(objective, objective(student, teacher, batch()))
    assert ours.item() == pytest.approx(study - constant, rel=HAND_WORKED_RELATIVE)


def test_vanilla_kd_has_the_gradient_of_the_studys_expression():
    objective, student, teacher = example(VANILLA, STUDENT)
    (ours,) = torch.autograd.grad(loss(objective, objective(student, teacher, batch())), student.logits.states)
    used = batch().labels != IGNORED
    of_student, of_teacher = student.logits.dense()[used], teacher.logits.dense()[used]
    soft = (-of_teacher.softmax(-1) * of_student.log_softmax(-1)).mean()
    study = soft + torch.nn.functional.cross_entropy(of_student, batch().labels[used])
    (expected,) = torch.autograd.grad(study, student.logits.states)
    torch.testing.assert_close(ours, expected, rtol=HAND_WORKED_RELATIVE, atol=HAND_WORKED_RELATIVE)


def test_vanilla_kd_takes_the_studys_values_where_the_arm_gives_none():
    assert build(VANILLA).weights == {"kd": 1.0 / VOCAB_SIZE, "mlm": 1.0}
    ours = build({**VANILLA, "weight_kd": 5.0, "weight_mlm": 2.0, "temperature": 2.0})
    assert ours.weights == {"kd": 5.0 / VOCAB_SIZE, "mlm": 2.0}  # no T^2 there
    assert ours.options.temperature == 2.0


# --- minilm ---


def study_relation(rows, features):
    """Rows of softmax(X X^T / sqrt(features)) over all positions, padding too."""
    found = []
    for x in rows:
        scores = [sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(features) for y in rows]
        found.append(log_softmax(scores))
    return found


def study_heads(projection, num_heads):
    """[L, H, d] of one sequence -> the study's relation heads: the numbers of [H, L, d] in order, cut anew."""
    flat = [x for head in projection.transpose(0, 1).tolist() for row in head for x in row]
    size = len(flat) // (num_heads * LENGTH)
    rows = [flat[i : i + size] for i in range(0, len(flat), size)]
    return [rows[head * LENGTH : (head + 1) * LENGTH] for head in range(num_heads)], size


@pytest.mark.parametrize("shape", [STUDENT, FEWER_HEADS], ids=["as many heads", "other heads"])
def test_minilm_mixes_positions_and_counts_padding(shape):
    objective, student, teacher = example(MINILM, shape)
    expected = {}
    for kind in ("queries", "keys", "values"):
        total = 0.0
        for b in range(NUM_SEQUENCES):
            student_heads, student_size = study_heads(getattr(student, kind)[2][b].detach(), 3)
            teacher_heads, teacher_size = study_heads(getattr(teacher, kind)[4][b], 3)
            for s_head, t_head in zip(student_heads, teacher_heads, strict=True):
                pairs = zip(study_relation(t_head, teacher_size), study_relation(s_head, student_size), strict=True)
                total += sum(math.exp(p) * (p - q) for t, s in pairs for p, q in zip(t, s, strict=True))
        expected[kind] = total
    assert values(objective(student, teacher, batch())) == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    assert set(values(objective.counts(batch())).values()) == {NUM_SEQUENCES * LENGTH * 3}


def test_minilm_is_the_canonical_one_where_heads_agree_and_nothing_is_padded():
    objective, student, teacher = example(MINILM, STUDENT)
    full = replace(batch(), attention_mask=None)
    canonical = build({"objective": "minilm", "num_relation_heads": 3})
    assert values(objective(student, teacher, full)) == values(canonical(student, teacher, full))
    other, student, teacher = example(MINILM, FEWER_HEADS)
    assert values(other(student, teacher, full)) != values(canonical(student, teacher, full))


def test_minilm_takes_the_teachers_heads_and_its_last_layer():
    large = replace(TEACHER, num_layers=24)
    assert build(MINILM, STUDENT, large).needs_teacher == Needs(queries=(24,), keys=(24,), values=(24,))
    assert build(MINILM).num_heads == TEACHER.num_attention_heads


# --- tinybert ---


def test_tinybert_feeds_scores_to_the_embedding_loss_and_compares_last_layers():
    objective, student, teacher = example(TINYBERT, WIDE_STUDENT)
    expected = {"embedding": 0.0, "attention": 0.0, "hidden": 0.0}
    for b, num_tokens in enumerate(LENGTHS):
        for head in range(3):
            for i in range(LENGTH):
                for j in range(LENGTH):
                    first, last = (
                        score(student, layers[0], b, head, i, j) - score(teacher, layers[1], b, head, i, j)
                        for layers in ((1, 1), (2, 4))
                    )
                    expected["embedding"] += first**2
                    expected["attention"] += last**2 if j < num_tokens else 0.0
        pair = (student.hidden[2][b].flatten().tolist(), teacher.hidden[4][b].flatten().tolist())
        expected["hidden"] += sum((x - y) ** 2 for x, y in zip(*pair, strict=True))
    assert values(objective(student, teacher, batch())) == pytest.approx(expected, rel=HAND_WORKED_RELATIVE)
    entries = NUM_SEQUENCES * LENGTH**2 * 3
    features = NUM_SEQUENCES * LENGTH * 18
    assert values(objective.counts(batch())) == {"embedding": entries, "attention": entries, "hidden": features}


def score(outputs, layer, b, head, i, j):
    query, key = outputs.queries[layer][b, i, head].tolist(), outputs.keys[layer][b, j, head].tolist()
    return sum(x * y for x, y in zip(query, key, strict=True)) / math.sqrt(len(query))


def test_tinybert_asks_for_first_and_last_layers_and_has_no_projection():
    objective = build(TINYBERT, WIDE_STUDENT)
    assert objective.needs_student == Needs(queries=(1, 2), keys=(1, 2), hidden=(2,))
    assert objective.needs_teacher == Needs(queries=(1, 4), keys=(1, 4), hidden=(4,))
    assert not list(objective.parameters())
    # L = 2, D = 18, H = 3: scores 2*4*36 + 4*4*18 + 7*3*4 = 660 twice; hidden 5*2*18 = 180.
    assert objective.flops(2, 1) == 2 * 660 + 180


# --- all ---


@pytest.mark.parametrize("recipe", [VANILLA, MINILM, TINYBERT], ids=lambda recipe: recipe["objective"])
def test_the_teacher_drops_out_in_these_alone(recipe):
    assert build(recipe, WIDE_STUDENT).teacher_dropout
    canonical = {"objective": recipe["objective"], "as_coded": False}
    canonical |= {"num_relation_heads": 3} if recipe is MINILM else {}
    assert not build(canonical, WIDE_STUDENT).teacher_dropout
    plain = {key: value for key, value in canonical.items() if key != "as_coded"}
    assert type(build(canonical, WIDE_STUDENT)) is type(build(plain, WIDE_STUDENT))
    assert build(canonical, WIDE_STUDENT).weights == build(plain, WIDE_STUDENT).weights


@pytest.mark.parametrize("recipe", [VANILLA, MINILM, TINYBERT], ids=lambda recipe: recipe["objective"])
def test_it_is_called_by_its_name(recipe):
    assert in_words(recipe) == f"{recipe['objective']}, as the study's code computes it"
    assert in_words({**recipe, "inputs": "clean"}) == (
        f"{recipe['objective']} (inputs clean), as the study's code computes it"
    )


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({**VANILLA, "positions": "all"}, "logits are compared at masked positions"),
        ({**MINILM, "num_relation_heads": 3}, "leave num_relation_heads out"),
        ({**TINYBERT, "projection": "always"}, "leave num_relation_heads and projection out"),
        ({"objective": "scratch", "as_coded": True}, "unknown key as_coded"),
    ],
)
def test_refuses_options(recipe, says):
    with pytest.raises(RecipeError, match=says):
        parse_options(recipe, "arms.x")


@pytest.mark.parametrize(
    ("recipe", "student", "teacher", "says"),
    [
        (TINYBERT, STUDENT, TEACHER, r"hidden size 12 \(student\), 18 \(teacher\)"),
        (TINYBERT, replace(WIDE_STUDENT, num_attention_heads=2), TEACHER, "attention heads 2"),
        (MINILM, STUDENT, replace(TEACHER, num_attention_heads=9), "does not divide both hidden sizes"),
        (VANILLA, STUDENT, None, "without a teacher"),
    ],
)
def test_refuses_models(recipe, student, teacher, says):
    with pytest.raises(ModelError, match=says):
        build(recipe, student, teacher)
