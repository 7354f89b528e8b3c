import pytest
import torch
from objective_examples import STUDENT, TEACHER, WIDE_STUDENT, batch, build, named, taps, total
from tolerances import REORDERED_FLOAT64_RELATIVE

from kd_megatron.errors import ModelError, RecipeError
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.tensors import Needs

SCRATCH = {"objective": "scratch"}
MINILM = {"objective": "minilm", "num_relation_heads": 6}
TINYBERT = {"objective": "tinybert"}
VANILLA = {"objective": "vanilla_kd", "weight_cosine": 1.0}


def combined(*parts, **changes):
    return {"objective": "combined", "parts": list(parts), **changes}


def loss_and_gradient(objective, student, teacher):
    loss = total(objective, objective(student, teacher, batch()), objective.counts(batch()))
    leaves = named(student)
    found = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    return loss, dict(zip(leaves, found, strict=True))


def test_loss_and_gradient_are_the_weighted_sums_of_the_parts():
    """The parts share outputs: two read the last layer's queries and keys, two compare hidden states."""
    recipes = {"vanilla_kd": (0.5, VANILLA), "minilm": (2.0, MINILM), "tinybert": (0.25, TINYBERT)}
    whole = build(combined(*({"weight": w, **recipe} for w, recipe in recipes.values())), WIDE_STUDENT)
    student = taps(whole.needs_student, WIDE_STUDENT, seed=1, requires_grad=True)
    teacher = taps(whole.needs_teacher, TEACHER, seed=2)
    loss, gradient = loss_and_gradient(whole, student, teacher)

    expected_loss, expected = 0.0, {name: torch.zeros_like(tensor) for name, tensor in named(student).items()}
    for weight, recipe in recipes.values():
        part = build(recipe, WIDE_STUDENT)
        own, of_part = loss_and_gradient(part, student.only(part.needs_student), teacher.only(part.needs_teacher))
        expected_loss += weight * own.item()
        for name, value in of_part.items():
            expected[name] = expected[name] + weight * value
    assert loss.item() == pytest.approx(expected_loss, rel=REORDERED_FLOAT64_RELATIVE)
    for name, value in expected.items():
        torch.testing.assert_close(
            gradient[name], value, rtol=REORDERED_FLOAT64_RELATIVE, atol=REORDERED_FLOAT64_RELATIVE
        )


def test_terms_carry_their_parts_name_and_weight():
    objective = build(combined({"weight": 2.0, **SCRATCH}, {"weight": 0.5, **VANILLA, "name": "soft"}), WIDE_STUDENT)
    assert objective.weights == {"scratch.mlm": 2.0, "soft.kd": 10.0, "soft.mlm": 1.0, "soft.cosine": 0.5}
    assert objective.counts(batch()).keys() == objective.weights.keys()


def test_needs_are_united_and_no_teacher_runs_for_parts_without():
    objective = build(combined(SCRATCH, MINILM))
    assert objective.needs_student == Needs(queries=(2,), keys=(2,), values=(2,), logits=True)
    assert objective.needs_teacher == Needs(queries=(4,), keys=(4,), values=(4,))
    assert build(combined(SCRATCH, {**SCRATCH, "name": "again"}), STUDENT, None).needs_teacher is None


def test_parameters_of_the_parts_train_with_it():
    objective = build(combined(MINILM, TINYBERT))
    assert [name for name, _ in objective.named_parameters()] == ["parts.tinybert.projection.weight"]


def test_flops_are_those_of_the_parts_and_of_logits_multiplied_out_again():
    parts = [build(recipe).flops(6, 3) for recipe in (SCRATCH, MINILM)]
    assert build(combined(SCRATCH, MINILM)).flops(6, 3) == sum(parts)
    twice = build(combined(SCRATCH, {**SCRATCH, "name": "again"}), STUDENT, None)
    assert twice.flops(6, 3) == 2 * parts[0] + 6 * 3 * STUDENT.hidden_size * STUDENT.vocab_size


def test_all_parts_read_what_the_arm_reads():
    options = parse_options(combined(MINILM, TINYBERT, inputs="clean"), "arms.x")
    assert {part.inputs for part in options.part_options().values()} == {"clean"}


def test_backend_and_temperature_of_the_parts_can_be_seen():
    assert parse_options(combined(SCRATCH, MINILM), "arms.x").backend == "auto"
    assert parse_options(combined(SCRATCH, {**MINILM, "backend": "reference"}), "arms.x").backend == "reference"
    assert parse_options(combined(SCRATCH, {**VANILLA, "temperature": 3.0}), "arms.x").temperature == 3.0


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (combined(SCRATCH), "at least 2 items"),
        (combined(SCRATCH, {"objective": "minlm"}), "did you mean 'minilm'"),
        (combined(SCRATCH, {**MINILM, "num_relation_head": 2}), "did you mean 'num_relation_heads'"),
        (combined(SCRATCH, {**TINYBERT, "weight": 0.0}), "part tinybert: weight: Input should be greater than 0"),
        (combined(SCRATCH, SCRATCH), "two parts are called scratch"),
        (combined(SCRATCH, {**MINILM, "inputs": "clean"}), "part minilm reads clean text and the arm masked"),
        (combined(SCRATCH, MINILM, inputs="clean"), "it would read the answers"),
        (combined(SCRATCH, {**MINILM, "name": "keys"}), "a part cannot be called keys"),
        (combined(SCRATCH, {**SCRATCH, "name": "a.b"}), "part a.b: name: String should match pattern"),
        (combined(SCRATCH, combined(SCRATCH, MINILM)), "part 2 has objective combined"),
        (combined(SCRATCH, MINILM, weight=1.0), "unknown key weight"),
    ],
)
def test_refuses_options(recipe, says):
    with pytest.raises(RecipeError, match=says):
        parse_options(recipe, "arms.x")


def test_refuses_one_teacher_with_and_without_dropout():
    with pytest.raises(ModelError, match="some parts have as_coded"):
        build(combined(MINILM, {"objective": "tinybert", "as_coded": True}), WIDE_STUDENT)
    assert build(combined(SCRATCH, {"objective": "tinybert", "as_coded": True}), WIDE_STUDENT).teacher_dropout
