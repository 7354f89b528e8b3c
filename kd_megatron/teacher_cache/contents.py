"""What is kept of a teacher, and how one window's share of it lies in a row of bytes.

Kept is the least from which everything the objective needs can be had again: hidden states in bfloat16 (of a tapped
attention layer its input, from which the layer's own projections make queries, keys and values), and the k likeliest
tokens at the masked positions.

Shapes: B rows, L length, D hidden size of the teacher, K masked positions, k tokens kept.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_megatron.errors import RecipeError
from kd_megatron.ranks.failures import runs_of
from kd_megatron.tensors import ModelShape, Needs, TopLogits

ALIGNMENT = 8  # of a row, in bytes: each part can then be read as numbers where it lies
LARGEST_UINT16_VOCABULARY = 2**16
SMALLEST_LOG_PROBABILITY = -6e4  # float16 ends at -65504; e^-60000 is 0 in any case


def kept_needs(needs: Needs) -> Needs:
    """What the teacher must return for a window to be kept, when an objective asks ``needs`` of it.

    Raises:
        RecipeError: logits at every position are asked for, which would take too much room.
    """
    if needs.all_logits:
        raise RecipeError(
            given="teacher.cache is given, but an arm needs the teacher's logits at every position (positions: all)",
            expected="logits at the masked positions: kept at every position they would be seven times as many",
            fix="set positions: masked in that arm, or remove teacher.cache",
        )
    return Needs(hidden=tuple(sorted({*needs.hidden, *(n - 1 for n in needs.attention_layers)})), logits=needs.logits)


def refuse_dropout(teacher_dropout: bool) -> None:
    """Refuse a teacher whose dropout is active: kept, one draw of it would stand for all visits of a window."""
    if teacher_dropout:
        raise RecipeError(
            given="teacher.cache is given, but an arm has as_coded, whose teacher drops out anew at every visit",
            expected="arms whose teacher gives a window the same outputs each time",
            fix="remove teacher.cache from the recipe, or as_coded from the arm",
        )


@dataclass(frozen=True)
class Part:
    """One tensor of a row."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # bytes from the row's beginning

    @property
    def end(self) -> int:
        """Where the next part may begin."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Contents:
    """What one store keeps of every window.

    Args:
        needs: of the teacher when a window is put through it (`kept_needs`).
        inputs: ``"masked"`` or ``"clean"``, what the teacher reads.
        top_k: k, used where logits are kept.
        temperature: of the kept distribution.
    """

    needs: Needs
    inputs: str
    teacher: ModelShape
    length: int
    num_masked: int
    top_k: int
    temperature: float

    def __post_init__(self) -> None:
        if self.needs.logits and self.top_k > self.teacher.vocab_size:
            raise RecipeError(
                given=f"teacher.cache.top_k {self.top_k}, of a vocabulary of {self.teacher.vocab_size} tokens",
                expected="no more tokens than there are",
                fix="lower teacher.cache.top_k",
            )

    @property
    def name(self) -> str:
        """A directory's name, such as ``masked-hidden11`` or ``masked-top64-T2``."""
        hidden = [f"hidden{_ranges(self.needs.hidden)}"] if self.needs.hidden else []
        logits = [f"top{self.top_k}-T{self.temperature:g}"] if self.needs.logits else []
        return "-".join([self.inputs, *hidden, *logits])

    @property
    def in_words(self) -> str:
        """For people: ``hidden state 11 in bfloat16``."""
        layers = _ranges(self.needs.hidden).replace(".", ", ")
        said = [f"hidden state{'s' if len(self.needs.hidden) > 1 else ''} {layers} in bfloat16"] if layers else []
        if self.needs.logits:
            said.append(f"the {self.top_k} likeliest tokens at masked positions, at temperature {self.temperature:g}")
        return " and ".join(said)

    @property
    def parts(self) -> list[Part]:
        """The tensors of a row. Those of wide numbers come first, so that all are aligned."""
        slots, kept = (self.num_masked,), (self.num_masked, self.top_k)
        wanted: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        if self.needs.logits:
            fits = self.teacher.vocab_size <= LARGEST_UINT16_VOCABULARY
            wanted += [("log_rest", slots, torch.float32), ("token_ids", kept, torch.uint16 if fits else torch.int32)]
            wanted += [("log_probabilities", kept, torch.float16)]
        states = (self.length, self.teacher.hidden_size)
        wanted += [(f"hidden{layer}", states, torch.bfloat16) for layer in self.needs.hidden]
        parts: list[Part] = []
        for name, shape, dtype in wanted:
            parts.append(Part(name, shape, dtype, parts[-1].end if parts else 0))
        return parts

    @property
    def row_bytes(self) -> int:
        """Bytes of one window."""
        return -(-self.parts[-1].end // ALIGNMENT) * ALIGNMENT

    def encode(self, hidden: dict[int, Tensor], top: TopLogits | None) -> Tensor:
        """Rows, [B, row_bytes] uint8, of hidden states [B, L, D] by layer and top logits [B, K]."""
        tensors = {f"hidden{layer}": states for layer, states in hidden.items()}
        if top is not None:
            kept = top.log_probabilities.clamp_min(SMALLEST_LOG_PROBABILITY)
            tensors |= {"log_rest": top.log_rest, "token_ids": top.token_ids, "log_probabilities": kept}
        parts = [tensors[part.name].to(part.dtype).flatten(1).contiguous().view(torch.uint8) for part in self.parts]
        padding = parts[0].new_zeros(len(parts[0]), self.row_bytes - self.parts[-1].end)
        return torch.cat([*parts, padding], dim=1)

    def decode(self, rows: Tensor) -> tuple[dict[int, Tensor], TopLogits | None]:
        """The inverse of `encode`, of rows [B, row_bytes] on any device: hidden states are views of them."""
        tensors = {
            part.name: rows[:, part.offset : part.end].view(part.dtype).unflatten(1, part.shape) for part in self.parts
        }
        hidden = {layer: tensors[f"hidden{layer}"] for layer in self.needs.hidden}
        return hidden, self._top_logits(tensors) if self.needs.logits else None

    def _top_logits(self, tensors: dict[str, Tensor]) -> TopLogits:
        """Probabilities are rounded to float16 on disk: they are made to sum to one again."""
        kept, rest = tensors["log_probabilities"].float(), tensors["log_rest"].float()
        total = torch.cat([kept, rest.unsqueeze(-1)], dim=-1).logsumexp(-1)
        token_ids = tensors["token_ids"].long()
        return TopLogits(kept - total.unsqueeze(-1), token_ids, rest - total, self.temperature)


def _ranges(layers: tuple[int, ...]) -> str:
    """Ascending numbers, runs of three or more drawn together: ``0-3.7.8``."""
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ".".join(map(str, run)) for run in runs_of(layers)]
    return ".".join(shown)
