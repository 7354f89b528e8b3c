"""What holds for every objective."""

import pytest
import torch
from objective_examples import (
    LENGTHS,
    RECIPES,
    SAME_WIDTH,
    STUDENT,
    WIDE_STUDENT,
    change,
    example,
    named,
    pad,
    take,
    total,
)
from objective_examples import build as build_example
from tolerances import (
    BF16_SUM_OF_TWO_OF_LARGEST,
    FLOAT32_GRADIENT_OF_LARGEST,
    FLOAT32_LOSS_RELATIVE,
    REORDERED_FLOAT64_RELATIVE,
)

every_objective = pytest.mark.parametrize("name", RECIPES)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


def approximately(terms):
    return pytest.approx(values(terms), rel=REORDERED_FLOAT64_RELATIVE)


def gradients(objective, student, teacher, batch):
    """Of the loss as the step makes it, by name: student outputs and the objective's own parameters."""
    loss = total(objective, objective(student, teacher, batch), objective.counts(batch))
    leaves = {**named(student), **dict(objective.named_parameters())}
    found = torch.autograd.grad(loss, leaves.values())
    return dict(zip(leaves, found, strict=True))


@every_objective
def test_terms_counts_and_weights_have_the_same_names(name):
    objective, student, teacher, batch = example(name)
    terms, counts = objective(student, teacher, batch), objective.counts(batch)
    assert terms.keys() == counts.keys() == objective.weights.keys()
    assert all(term.shape == () and term.requires_grad for term in terms.values())
    assert all(count.shape == () and count.dtype == torch.float64 and count > 0 for count in counts.values())


@every_objective
def test_gradient_is_that_of_finite_differences(name):
    objective, student, teacher, batch = example(name)
    short = take(slice(1, 3), change(student, lambda _, x: x.detach()), teacher, batch)
    leaves = [x.clone().requires_grad_(True) for x in named(short[0]).values()]

    def loss(*tensors):
        by_name = dict(zip(named(short[0]), tensors, strict=True))
        outputs = change(short[0], lambda tensor_name, _: by_name[tensor_name])
        return total(objective, objective(outputs, *short[1:]), objective.counts(short[2]))

    assert torch.autograd.gradcheck(loss, leaves)
    parameters = list(objective.parameters())
    if parameters:  # gradcheck perturbs them in place
        assert torch.autograd.gradcheck(lambda *_: loss(*leaves), parameters)


@every_objective
def test_every_output_asked_of_the_student_gets_a_gradient(name):
    found = gradients(*example(name))
    assert all(gradient.abs().sum() > 0 for gradient in found.values())


@every_objective
def test_padding_gets_a_gradient_of_exactly_zero(name):
    objective, student, teacher, batch = example(name)
    for tensor_name, gradient in gradients(objective, student, teacher, batch).items():
        if tensor_name.startswith("logits") or tensor_name in dict(objective.named_parameters()):
            continue
        assert torch.all(gradient[~batch.valid()] == 0.0), tensor_name


@every_objective
def test_more_padding_changes_nothing(name):
    objective, student, teacher, batch = example(name)
    longer = pad(5, student, teacher, batch)
    assert values(objective(*longer)) == approximately(objective(student, teacher, batch))
    assert values(objective.counts(longer[2])) == values(objective.counts(batch))


@every_objective
def test_the_order_of_sequences_changes_nothing(name):
    objective, student, teacher, batch = example(name)
    reordered = take([2, 0, 1], student, teacher, batch)
    assert values(objective(*reordered)) == approximately(objective(student, teacher, batch))
    assert values(objective.counts(reordered[2])) == values(objective.counts(batch))


@every_objective
@pytest.mark.parametrize("split", [[[0], [1], [2]], [[0, 1], [2]], [[0], [1, 2]]], ids=["1+1+1", "2+1", "1+2"])
def test_micro_batches_add_up(name, split):
    objective, student, teacher, batch = example(name)
    parts = [take(sequences, student, teacher, batch) for sequences in split]
    whole_terms, whole_counts = objective(student, teacher, batch), objective.counts(batch)
    sums = [objective(*part) for part in parts]
    added = {term: sum(part[term] for part in sums) for term in whole_terms}
    assert values(added) == approximately(whole_terms)
    counts = [objective.counts(part[2]) for part in parts]
    assert {term: sum(part[term] for part in counts).item() for term in whole_terms} == values(whole_counts)

    leaves = list({**named(student), **dict(objective.named_parameters())}.values())
    of_whole = torch.autograd.grad(total(objective, whole_terms, whole_counts), leaves)
    of_parts = torch.autograd.grad(total(objective, added, whole_counts), leaves)
    for actual, expected in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=REORDERED_FLOAT64_RELATIVE, atol=REORDERED_FLOAT64_RELATIVE)


@every_objective
def test_no_mask_means_no_padding(name):
    objective, student, teacher, batch = example(name)
    full = take([0], student, teacher, batch)
    assert LENGTHS[0] == full[2].input_ids.shape[1]
    unmasked = type(batch)(**{**vars(full[2]), "attention_mask": None})
    assert values(objective(*full[:2], unmasked)) == approximately(objective(*full))
    assert values(objective.counts(unmasked)) == values(objective.counts(full[2]))


# A projection is a layer of the student and computes in its dtype: see test_tinybert.py.
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("tinybert", "tinybert, re-split")])
def test_bf16_outputs_are_compared_in_float32(name):
    objective, student, teacher, batch = example(name)
    narrow_student, narrow_teacher = (change(x, lambda _, t: t.detach().bfloat16()) for x in (student, teacher))
    results = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        leaf_student = change(narrow_student, lambda _, x, d=dtype: x.to(d).clone().requires_grad_(True))
        same_teacher = change(narrow_teacher, lambda _, x, d=dtype: x.to(d))
        terms = objective(leaf_student, same_teacher, batch)
        results[dtype] = terms, gradients(objective, leaf_student, same_teacher, batch)
    narrow, wide, exact = (results[dtype] for dtype in (torch.bfloat16, torch.float32, torch.float64))
    assert {term.dtype for term in narrow[0].values()} == {torch.float32}
    assert values(narrow[0]) == values(wide[0])
    assert values(narrow[0]) == pytest.approx(values(exact[0]), rel=FLOAT32_LOSS_RELATIVE)
    for tensor_name, gradient in narrow[1].items():
        if tensor_name == "all_logits":  # read by two kernels: autograd adds two gradients, each rounded once
            error = (gradient.double() - wide[1][tensor_name]).abs().max()
            assert error <= BF16_SUM_OF_TWO_OF_LARGEST * wide[1][tensor_name].abs().max()
        else:
            assert torch.equal(gradient, wide[1][tensor_name].bfloat16())
        difference = (wide[1][tensor_name].double() - exact[1][tensor_name]).abs().max()
        assert difference <= FLOAT32_GRADIENT_OF_LARGEST * exact[1][tensor_name].abs().max()


@every_objective
def test_the_teacher_may_come_from_inference_mode_and_gets_no_gradient(name):
    objective, student, teacher, batch = example(name)
    with torch.inference_mode():
        frozen = change(teacher, lambda _, x: x.clone())
    found = gradients(objective, student, frozen, batch)
    expected = gradients(objective, student, teacher, batch)
    assert all(torch.equal(found[tensor_name], expected[tensor_name]) for tensor_name in expected)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "scratch"])
def test_a_teacher_with_gradient_is_refused(name):
    objective, student, teacher, batch = example(name)
    trainable = change(teacher, lambda _, x: x.clone().requires_grad_(True))
    with pytest.raises(ValueError, match=r"teacher.* requires a gradient"):
        objective(student, trainable, batch)


@every_objective
def test_the_same_torch_seed_gives_the_same_parameters(name):
    student = WIDE_STUDENT if name in SAME_WIDTH else STUDENT
    first, second = (build_example(RECIPES[name], student).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_objective
def test_loss_costs_little_beside_the_models_and_grows_with_length(name):
    """At the study's sizes the loss costs less than a fifth of No-KD's 2.84e8 FLOPs per token."""
    shapes = [
        type(STUDENT)(num_layers=layers, hidden_size=768, num_attention_heads=12, vocab_size=30_522)
        for layers in (6, 12)
    ]
    recipe = {**RECIPES[name], **({"num_relation_heads": 48} if "minilm" in name else {})}
    objective = build_example(recipe, *shapes)
    assert 0 < objective.flops(128, 19) < 0.2 * 2.84e8 * 128
    assert objective.flops(256, 38) > objective.flops(128, 19)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "scratch"])
def test_a_missing_teacher_output_is_named(name):
    objective, student, _, batch = example(name)
    with pytest.raises(ValueError, match="no teacher given"):
        objective(student, None, batch)
