import pytest

from kd_megatron.errors import RecipeError
from kd_megatron.objectives.of_arm import COMPOSED, parse_options
from kd_megatron.objectives.registry import OBJECTIVES

OPTIONS = {name: options for name, (options, _) in OBJECTIVES.items()} | COMPOSED
MINIMAL = {
    "minilm": {"num_relation_heads": 6},
    "schedule": {"phases": [{"until": 0.5, "objective": "scratch"}, {"until": 1.0, "objective": "tinybert"}]},
    "combined": {"parts": [{"objective": "scratch"}, {"objective": "tinybert"}]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_objective_is_found_by_its_name(name):
    options = parse_options({"objective": name, **MINIMAL.get(name, {})}, "arms.x")
    assert type(options) is OPTIONS[name]
    assert options.objective == name
    assert options.inputs == "masked"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({}, "arms.x: missing key objective"),
        ({"objective": "minlm"}, "arms.x: unknown objective 'minlm'; did you mean 'minilm'"),
        (
            {"objective": "zzz"},
            "unknown objective 'zzz'; known: combined, minilm, schedule, scratch, tinybert, vanilla_kd",
        ),
        ({"objective": 3}, "unknown objective '?3"),
        ({"objective": "scratch", "temperature": 2.0}, "unknown key temperature"),
        (
            {"objective": "minilm", "num_relation_heads": 6, "inputs": "masks"},
            "inputs: Input should be 'masked' or 'clean'",
        ),
    ],
)
def test_mistakes_are_named(raw, says):
    with pytest.raises(RecipeError, match=says):
        parse_options(raw, "arms.x")
