import math
from dataclasses import replace

import pytest
import torch
from objective_examples import LENGTHS, STUDENT, TEACHER, VOCAB_SIZE, WIDE_STUDENT, build, example, taps
from tolerances import HAND_WORKED_RELATIVE, HIGH_TEMPERATURE_RELATIVE, REORDERED_FLOAT64_RELATIVE

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.kernels.vocab_kl.top_logits import top_logits
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.tensors import IGNORED, Needs, Taps

RECIPE = {"objective": "vanilla_kd"}


def softmax(logits, temperature=1.0):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def divergence(student_logits, teacher_logits, temperature):
    p, q = softmax(teacher_logits, temperature), softmax(student_logits, temperature)
    return sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True))


def test_masked_positions_equal_hand_worked_loops():
    objective, student, teacher, batch = example("vanilla_kd")
    kd = mlm = 0.0
    for sequence, labels in enumerate(batch.labels.tolist()):
        for slot, label in enumerate(labels):
            if label == IGNORED:
                continue
            student_row, teacher_row = (x.logits.dense()[sequence, slot].tolist() for x in (student, teacher))
            kd += divergence(student_row, teacher_row, 2.0)
            mlm -= math.log(softmax(student_row)[label])
    terms = {name: term.item() for name, term in objective(student, teacher, batch).items()}
    assert terms == pytest.approx({"kd": kd, "mlm": mlm}, rel=HAND_WORKED_RELATIVE)
    assert {name: count.item() for name, count in objective.counts(batch).items()} == {"kd": 6, "mlm": 6}


def test_all_positions_and_cosine_equal_hand_worked_loops():
    objective, student, teacher, batch = example("vanilla_kd, all")
    targets = {(0, 1): 4, (0, 3): 0, (0, 5): 12, (1, 0): 7, (1, 2): 9, (2, 1): 3}  # position -> label
    kd = mlm = cosine = 0.0
    for sequence, num_tokens in enumerate(LENGTHS):
        for position in range(num_tokens):
            student_row, teacher_row = (x.all_logits.dense()[sequence, position].tolist() for x in (student, teacher))
            kd += divergence(student_row, teacher_row, 2.0)
            if (sequence, position) in targets:
                mlm -= math.log(softmax(student_row)[targets[sequence, position]])
            a, b = student.hidden[2][sequence, position].tolist(), teacher.hidden[4][sequence, position].tolist()
            product = sum(x * y for x, y in zip(a, b, strict=True))
            cosine += 1 - product / (math.hypot(*a) * math.hypot(*b))
    terms = {name: term.item() for name, term in objective(student, teacher, batch).items()}
    assert terms == pytest.approx({"kd": kd, "mlm": mlm, "cosine": cosine}, rel=HAND_WORKED_RELATIVE)
    counts = {name: count.item() for name, count in objective.counts(batch).items()}
    assert counts == {"kd": 12, "mlm": 6, "cosine": 12}


def test_the_square_of_the_temperature_is_in_the_weight():
    objective = build({**RECIPE, "temperature": 3.0, "weight_kd": 5.0, "weight_mlm": 2.0})
    assert objective.weights == {"kd": 45.0, "mlm": 2.0}


def test_at_high_temperature_the_weighted_divergence_matches_logits():
    """Hinton et al.: for T -> infinity T^2 KL tends to the squared difference of centred logits over 2 V."""
    _, student, teacher, batch = example("vanilla_kd")
    hot = build({**RECIPE, "temperature": 1e4, "weight_kd": 1.0})
    used = batch.labels != IGNORED
    difference = (student.logits.dense() - teacher.logits.dense())[used]
    centred = difference - difference.mean(-1, keepdim=True)
    expected = centred.square().sum().item() / (2 * VOCAB_SIZE)
    assert hot.weights["kd"] * hot(student, teacher, batch)["kd"].item() == pytest.approx(
        expected, rel=HIGH_TEMPERATURE_RELATIVE
    )


def test_asks_for_no_more_than_it_uses():
    assert build(RECIPE).needs_student == Needs(logits=True)
    distilbert = build({**RECIPE, "positions": "all", "weight_cosine": 1.0}, WIDE_STUDENT)
    assert distilbert.needs_student == Needs(hidden=(2,), all_logits=True)
    assert distilbert.needs_teacher == Needs(hidden=(4,), all_logits=True)


def test_an_mlm_weight_of_zero_keeps_the_term():
    """A parameter that is in the graph at one step and not at another gets stale gradients under ZeRO."""
    objective = build({**RECIPE, "weight_mlm": 0.0})
    assert objective.weights["mlm"] == 0.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"weight_mlm": -1.0}, "weight_mlm: Input should be greater than or equal to 0"),
        ({"weight_kd": 0.0}, "nothing is distilled"),
        ({"positions": "some"}, "positions: Input should be 'masked' or 'all'"),
        ({"inputs": "clean"}, "it would read the answers"),
        ({"temprature": 2.0}, "did you mean 'temperature'"),
        ({"backend": "tritn"}, "unknown backend 'tritn'; did you mean 'triton'"),
    ],
)
def test_refuses_options(change, says):
    with pytest.raises(RecipeError, match=says):
        parse_options({**RECIPE, **change}, "arms.vanilla_kd")


@pytest.mark.parametrize(
    ("change", "student", "teacher", "says"),
    [
        ({}, STUDENT, None, "objective vanilla_kd without a teacher"),
        ({}, STUDENT, replace(TEACHER, vocab_size=14), r"vocabularies of 13 \(student\) and 14 \(teacher\)"),
        ({"weight_cosine": 1.0}, STUDENT, TEACHER, r"hidden sizes 12 \(student\) and 18 \(teacher\)"),
    ],
)
def test_refuses_models(change, student, teacher, says):
    with pytest.raises(ModelError, match=says):
        build({**RECIPE, **change}, student, teacher)


def test_flops_follow_the_positions():
    per_row = 24 * VOCAB_SIZE
    assert build(RECIPE).flops(6, 3) == 3 * per_row
    at_slots_again = 6 * 3 * STUDENT.hidden_size * VOCAB_SIZE
    assert build({**RECIPE, "positions": "all"}).flops(6, 3) == 6 * per_row + at_slots_again
    with_cosine = build({**RECIPE, "weight_cosine": 0.5}, WIDE_STUDENT)
    assert with_cosine.flops(6, 3) == 3 * per_row + 10 * 6 * 18


def test_the_cosine_counts_real_tokens_wherever_the_divergence_is_taken():
    *_, batch = example("vanilla_kd")
    counts = build({**RECIPE, "weight_cosine": 0.5}, WIDE_STUDENT).counts(batch)
    assert {name: count.item() for name, count in counts.items()} == {"kd": 6, "mlm": 6, "cosine": sum(LENGTHS)}
    assert torch.equal(counts["kd"], counts["mlm"])


# --- a teacher from a cache ---


def cached(teacher, num_kept, temperature=2.0):
    return Taps(top_logits=top_logits(teacher.logits.dense(), num_kept, temperature), hidden=teacher.hidden)


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_a_cache_of_every_token_gives_the_terms_and_gradient_of_the_teacher(backend):
    _, student, teacher, batch = example("vanilla_kd")
    objective = build({**RECIPE, "backend": backend})

    def with_gradient(teacher):
        terms = objective(student, teacher, batch)
        loss = sum(objective.weights[name] * term for name, term in terms.items())
        return [*terms.values(), torch.autograd.grad(loss, student.logits.states)[0]]

    whole, every_token = with_gradient(teacher), with_gradient(cached(teacher, VOCAB_SIZE))
    for actual, expected in zip(every_token, whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=REORDERED_FLOAT64_RELATIVE, atol=REORDERED_FLOAT64_RELATIVE)


def test_a_cache_of_some_tokens_bounds_the_divergence_from_below_and_leaves_the_cross_entropy():
    objective, student, teacher, batch = example("vanilla_kd")
    whole, some = objective(student, teacher, batch), objective(student, cached(teacher, 3), batch)
    assert 0.2 * whole["kd"].item() < some["kd"].item() < 0.99 * whole["kd"].item()
    assert some["mlm"].item() == pytest.approx(whole["mlm"].item(), rel=REORDERED_FLOAT64_RELATIVE)


def test_a_cache_leaves_the_cosine():
    objective = build({**RECIPE, "weight_cosine": 0.5}, WIDE_STUDENT)
    student, teacher = (
        taps(needs, shape, seed)
        for needs, shape, seed in (
            (objective.needs_student, WIDE_STUDENT, 1),
            (objective.needs_teacher, TEACHER, 2),
        )
    )
    *_, batch = example("vanilla_kd")
    whole, some = objective(student, teacher, batch), objective(student, cached(teacher, 3), batch)
    assert some["cosine"].item() == whole["cosine"].item() > 0


def test_a_cache_at_another_temperature_is_refused():
    objective, student, teacher, batch = example("vanilla_kd")
    with pytest.raises(RecipeError, match="temperature 2, but the cached logits of the teacher are at temperature 1"):
        objective(student, cached(teacher, 3, temperature=1.0), batch)


def test_a_cache_is_refused_where_every_position_is_compared():
    objective, student, teacher, batch = example("vanilla_kd, all")
    at_slots = Taps(top_logits=top_logits(torch.zeros(3, 3, VOCAB_SIZE), 3, 2.0), hidden=teacher.hidden)
    with pytest.raises(RecipeError, match="positions all with cached logits of the teacher"):
        objective(student, at_slots, batch)
