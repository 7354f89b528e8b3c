import pytest

from kd_megatron.errors import RecipeError
from kd_megatron.objectives.of_arm import parse_options
from kd_megatron.objectives.schedule import phase_at, phases_of
from kd_megatron.objectives.words import in_words

SCRATCH = {"objective": "scratch"}
MINILM = {"objective": "minilm", "num_relation_heads": 6}


def schedule(*phases, **changes):
    return {"objective": "schedule", "phases": list(phases), **changes}


TWO = schedule({"until": 0.25, **SCRATCH}, {"until": 1.0, **MINILM, "inputs": "clean"})


def test_phases_follow_each_other():
    first, second = phases_of(parse_options(TWO, "arms.x"))
    assert (first.begins, first.until, first.share, first.options.objective) == (0.0, 0.25, 0.25, "scratch")
    assert (second.begins, second.until, second.options.inputs) == (0.25, 1.0, "clean")


def test_any_other_objective_is_one_phase():
    options = parse_options(MINILM, "arms.x")
    (phase,) = phases_of(options)
    assert phase.options is options
    assert phase.share == 1.0


@pytest.mark.parametrize(("fraction", "number"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.9, 1), (1.0, 1), (1.3, 1)])
def test_a_step_belongs_to_the_phase_in_which_it_begins(fraction, number):
    assert phase_at(phases_of(parse_options(TWO, "arms.x")), fraction) == number


def test_it_is_told_in_words():
    assert in_words(TWO) == "scratch until 25 %, then minilm (num_relation_heads 6, inputs clean)"
    parts = {"objective": "combined", "parts": [{"weight": 0.5, **SCRATCH}, MINILM]}
    assert in_words(parts) == "0.5 x scratch + 1 x minilm (num_relation_heads 6)"


def test_the_backends_of_phases_can_be_seen():
    assert parse_options(TWO, "arms.x").backend == "auto"
    with_backend = schedule({"until": 0.5, **SCRATCH, "backend": "chunked"}, {"until": 1.0, **MINILM})
    assert parse_options(with_backend, "arms.x").backend == "chunked"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (schedule({"until": 1.0, **SCRATCH}), "at least 2 items"),
        (schedule({"until": 0.5, **SCRATCH}, {"until": 0.9, **MINILM}), "until is 0.5, 0.9; write rising fractions"),
        (schedule({"until": 0.5, **SCRATCH}, {"until": 0.5, **MINILM}), "write rising fractions that end at 1.0"),
        (schedule(SCRATCH, {"until": 1.0, **MINILM}), "phase 1: missing key until"),
        (schedule({"until": 0.5, **SCRATCH}, {"until": 1.5, **MINILM}), "phase 2: until"),
        (schedule({"until": 0.5, "objective": "scrach"}, {"until": 1.0, **MINILM}), "did you mean 'scratch'"),
        (schedule({"until": 0.5, **TWO}, {"until": 1.0, **MINILM}), "phase 1 has objective schedule"),
        (schedule(*TWO["phases"], inputs="clean"), "inputs belongs to a phase"),
    ],
)
def test_refuses_options(recipe, says):
    with pytest.raises(RecipeError, match=says):
        parse_options(recipe, "arms.x")
