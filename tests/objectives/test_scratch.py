import math

import pytest
import torch
from objective_examples import STUDENT, batch, build, example
from tolerances import HAND_WORKED_RELATIVE

from kd_megatron.errors import RecipeError
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.tensors import IGNORED, Needs


def cross_entropy_by_hand(logits, labels):
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label != IGNORED:
            total -= math.log(math.exp(row[label]) / sum(math.exp(logit) for logit in row))
    return total


def test_equals_hand_worked_loops():
    objective, student, _, examples = example("scratch")
    expected = cross_entropy_by_hand(student.logits.dense().flatten(0, 1).tolist(), examples.labels.flatten().tolist())
    terms = objective(student, None, examples)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"mlm": expected}, rel=HAND_WORKED_RELATIVE
    )
    assert objective.counts(examples)["mlm"] == 6
    assert objective.weights == {"mlm": 1.0}


def test_unused_slots_get_no_gradient():
    objective, student, _, examples = example("scratch")
    (gradient,) = torch.autograd.grad(objective(student, None, examples)["mlm"], student.logits.states)
    assert torch.all(gradient[examples.labels == IGNORED] == 0.0)


def test_asks_for_logits_at_the_masked_slots_and_no_teacher():
    objective = build({"objective": "scratch"}, teacher=None)
    assert objective.needs_student == Needs(logits=True)
    assert objective.needs_teacher is None


def test_a_batch_without_targets_is_zero():
    objective, student, _, examples = example("scratch")
    empty = type(examples)(**{**vars(examples), "labels": torch.full_like(examples.labels, IGNORED)})
    assert objective(student, None, empty)["mlm"].item() == 0.0
    assert objective.counts(empty)["mlm"] == 0


def test_clean_inputs_are_refused():
    with pytest.raises(RecipeError, match="it would read the answers"):
        parse_options({"objective": "scratch", "inputs": "clean"}, "arms.scratch")


def test_flops_are_six_per_logit():
    assert build({"objective": "scratch"}).flops(batch().input_ids.shape[1], 3) == 6 * 3 * STUDENT.vocab_size
