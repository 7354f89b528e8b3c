"""A small batch, small models' outputs, and what may be done to them without changing a loss.

Shapes: B batch, L length, K masked slots, D hidden size, H attention heads, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kd_megatron.objectives import of_arm
from kd_megatron.objectives.base import Objective
from kd_megatron.tensors import IGNORED, Batch, FactoredLogits, ModelShape, Needs, Taps

VOCAB_SIZE = 13
STUDENT = ModelShape(num_layers=2, hidden_size=12, num_attention_heads=3, vocab_size=VOCAB_SIZE)
TEACHER = ModelShape(num_layers=4, hidden_size=18, num_attention_heads=3, vocab_size=VOCAB_SIZE)
WIDE_STUDENT = replace(STUDENT, hidden_size=18)  # as wide as the teacher
LENGTHS = (6, 4, 2)  # real tokens per sequence

RECIPES = {
    "scratch": {"objective": "scratch"},
    "vanilla_kd": {"objective": "vanilla_kd"},
    "vanilla_kd, all": {"objective": "vanilla_kd", "positions": "all", "weight_cosine": 1.0},
    "minilm": {"objective": "minilm", "num_relation_heads": 6},
    "tinybert": {"objective": "tinybert"},
    "tinybert, no projection": {"objective": "tinybert", "projection": "auto"},
    "combined": {
        "objective": "combined",
        "parts": [
            {"weight": 2.0, "objective": "scratch"},
            {"weight": 0.5, "objective": "minilm", "num_relation_heads": 6, "relations": {"values": 1.5}},
        ],
    },
    "tinybert, re-split": {"objective": "tinybert", "num_relation_heads": 2, "projection": "always"},
}
SAME_WIDTH = {"vanilla_kd, all", "tinybert, no projection"}  # recipes run with hidden sizes that agree


def build(recipe: dict[str, object], student: ModelShape = STUDENT, teacher: ModelShape | None = TEACHER) -> Objective:
    """The objective of ``recipe``, its parameters drawn from seed 0, in float64."""
    torch.manual_seed(0)
    return of_arm.build(of_arm.parse_options(recipe, "arms.example"), student, teacher).double()


def example(name: str) -> tuple[Objective, Taps, Taps, Batch]:
    """The objective of ``RECIPES[name]``, outputs of a student (with gradient) and a teacher, and their batch."""
    student_shape = WIDE_STUDENT if name in SAME_WIDTH else STUDENT
    objective = build(RECIPES[name], student_shape)
    student = taps(objective.needs_student, student_shape, seed=1, requires_grad=True)
    teacher = taps(objective.needs_teacher or Needs(), TEACHER, seed=2)
    return objective, student, teacher, batch()


def batch() -> Batch:
    """Three padded sequences of up to 6 tokens and 3 slots; one slot is unused, and names a used slot's position."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (len(LENGTHS), max(LENGTHS)), generator=generator)
    return Batch(
        input_ids=ids,
        clean_ids=ids,
        attention_mask=torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None],
        masked_positions=torch.tensor([[1, 3, 5], [0, 2, 2], [1, 0, 0]]),
        labels=torch.tensor([[4, 0, 12], [7, 9, IGNORED], [3, IGNORED, IGNORED]]),
        sample_ids=torch.arange(len(LENGTHS)),
    )


def taps(needs: Needs, shape: ModelShape, seed: int, requires_grad: bool = False) -> Taps:
    """Standard normal float64 outputs: exactly what ``needs`` asks for."""
    generator = torch.Generator().manual_seed(seed)
    num_sequences, length, num_slots = len(LENGTHS), max(LENGTHS), 3

    def draw(*sizes: int) -> Tensor:
        drawn = torch.randn(num_sequences, *sizes, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_(requires_grad)

    heads = (length, shape.num_attention_heads, shape.hidden_size // shape.num_attention_heads)
    return Taps(
        queries={layer: draw(*heads) for layer in needs.queries},
        keys={layer: draw(*heads) for layer in needs.keys},
        values={layer: draw(*heads) for layer in needs.values},
        hidden={layer: draw(length, shape.hidden_size) for layer in needs.hidden},
        logits=factored(draw(num_slots, shape.hidden_size), shape) if needs.logits else None,
        all_logits=factored(draw(length, shape.hidden_size), shape) if needs.all_logits else None,
    )


def factored(states: Tensor, shape: ModelShape) -> FactoredLogits:
    """Logits of about unit size: a head of fixed weights for each hidden size, without gradient."""
    generator = torch.Generator().manual_seed(shape.hidden_size)
    weight = torch.randn(shape.vocab_size, shape.hidden_size, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape.vocab_size, generator=generator, dtype=torch.float64)
    return FactoredLogits(states, weight * shape.hidden_size**-0.5, bias)


def named(outputs: Taps) -> dict[str, Tensor]:
    """All tensors of ``outputs`` by name; of logits the states."""
    found = {
        f"{kind}.{layer}": tensor
        for kind in ("queries", "keys", "values", "hidden")
        for layer, tensor in getattr(outputs, kind).items()
    }
    return found | {
        kind: getattr(outputs, kind).states for kind in ("logits", "all_logits") if getattr(outputs, kind) is not None
    }


def change(outputs: Taps, function: Callable[[str, Tensor], Tensor]) -> Taps:
    """``outputs`` with every tensor replaced by ``function(name, tensor)``."""
    changed = {name: function(name, tensor) for name, tensor in named(outputs).items()}
    layered: dict[str, dict[int, Tensor]] = {"queries": {}, "keys": {}, "values": {}, "hidden": {}}
    for name, tensor in changed.items():
        kind, _, layer = name.partition(".")
        if layer:
            layered[kind][int(layer)] = tensor
    logits = {
        kind: with_states(getattr(outputs, kind), changed[kind]) for kind in ("logits", "all_logits") if kind in changed
    }
    return Taps(**layered, **logits)


def with_states(logits: FactoredLogits, states: Tensor) -> FactoredLogits:
    """The same head, in the dtype of other states."""
    assert logits.bias is not None
    return FactoredLogits(states, logits.weight.to(states.dtype), logits.bias.to(states.dtype))


def take(sequences: list[int] | slice, student: Taps, teacher: Taps, whole: Batch) -> tuple[Taps, Taps, Batch]:
    """Some sequences, in the given order."""
    parts = {name: tensor[sequences] for name, tensor in vars(whole).items()}
    return change(student, lambda _, x: x[sequences]), change(teacher, lambda _, x: x[sequences]), Batch(**parts)


def pad(extra: int, student: Taps, teacher: Taps, short: Batch) -> tuple[Taps, Taps, Batch]:
    """``extra`` more padding positions, holding large numbers."""

    def longer(name: str, tensor: Tensor) -> Tensor:
        if name == "logits":
            return tensor
        return torch.cat([tensor, torch.full_like(tensor[:, :1], 1e3).expand(-1, extra, *tensor.shape[2:])], dim=1)

    def longer_ids(ids: Tensor) -> Tensor:
        return torch.cat([ids, torch.zeros_like(ids[:, :1]).expand(-1, extra)], dim=1)

    padded = replace(
        short,
        input_ids=longer_ids(short.input_ids),
        clean_ids=longer_ids(short.clean_ids),
        attention_mask=longer_ids(short.attention_mask),
    )
    return change(student, longer), change(teacher, longer), padded


def total(objective: Objective, terms: dict[str, Tensor], counts: dict[str, Tensor]) -> Tensor:
    """The loss as the step makes it: every sum divided by its count, weighted."""
    return sum((objective.weights[name] * term / counts[name] for name, term in terms.items()), torch.zeros(()))
