"""The arms as the study's own code computes them, mistakes included: option ``as_coded: true``.

Source: ``Distillation_Strategies/task_agnostic_distillation/methods/feature_distill.py`` of the repository
MinhDucBui/revisiting_distillation (Bui et al. 2024, arXiv 2404.19319), run as its scripts do, with ``layer_selection
-1``. They are here so that a difference in outcome can be explained, and for nothing else. In all three:

- the teacher is in training mode, so that its dropout (with the probabilities of its own config) disturbs the targets;
- padding counts like any other position; in packed windows, which this system trains on, there is none.

Not reproduced, as they are no part of an objective: fp16 with a mask of -10000, means of micro-batch means, heads and
attention maps that are computed and not used, and other settings than those of the arm without distillation.

Shapes: B batch, L length, H attention heads, d head size, D hidden size, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kd_megatron.errors import ModelError
from kd_megatron.kernels import hidden_mse as hidden_kernel
from kd_megatron.kernels import score_mse as score_kernel
from kd_megatron.objectives import checks
from kd_megatron.objectives.base import Objective
from kd_megatron.objectives.minilm import MiniLm, MiniLmOptions
from kd_megatron.objectives.tinybert import TinyBertOptions, hidden_backend
from kd_megatron.objectives.vanilla_kd import VanillaKd, VanillaKdOptions
from kd_megatron.tensors import Batch, ModelShape, Needs, Taps

VALUES_OF_THE_STUDY = {"temperature": 1.0, "weight_kd": 1.0, "weight_mlm": 1.0}  # of vanilla_kd, unless given


class VanillaKdAsCoded(VanillaKd):
    """The soft cross-entropy is averaged over the vocabulary as well: ``loss = mean over rows and V + MLM``.

    Its gradient is that of the divergence divided by V (the two differ by the teacher's entropy, which has none). Term
    ``kd`` stays the divergence in nats; 1 / V is part of its weight, in which the study has no T^2.
    """

    teacher_dropout = True

    def __init__(self, options: VanillaKdOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        values = {name: value for name, value in VALUES_OF_THE_STUDY.items() if name not in options.model_fields_set}
        options = options.model_copy(update=values)
        super().__init__(options, student, teacher)
        self.weights = {"kd": options.weight_kd / student.vocab_size, "mlm": options.weight_mlm}


class MiniLmAsCoded(MiniLm):
    """As many relation heads as the teacher has attention heads, of its last layer, by a flat reshape.

    [B, H_s, L, d_s] becomes [B, H_t, L, D_s / H_t] without going back to [B, L, D]: where head counts differ, a
    relation head is a mixture of positions. Relations and rows include padding.
    """

    teacher_dropout = True

    def __init__(self, options: MiniLmOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        shape = checks.require_teacher("minilm", teacher)
        values = {
            "num_relation_heads": shape.num_attention_heads,
            "teacher_layer": options.teacher_layer or shape.num_layers,
        }
        super().__init__(options.model_copy(update=values), student, teacher)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Every term: query rows, padding included, times relation heads."""
        return super().counts(replace(batch, attention_mask=None))

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """Every term: sum over query rows and relation heads of KL(relation_t || relation_s), in nats."""

        def cut(projections: dict[int, Tensor]) -> dict[int, Tensor]:
            return {layer: flat_reshape(tap, self.num_heads) for layer, tap in projections.items()}

        taps = Taps(queries=cut(student.queries), keys=cut(student.keys), values=cut(student.values))
        return super().forward(taps, teacher, replace(batch, attention_mask=None))


class TinyBertAsCoded(Objective):
    """Terms ``embedding``, ``attention`` and ``hidden``, each a mean over all entries.

    ``embedding`` is fed the attention tensors: the scores of the first layers. ``attention`` and ``hidden`` compare the
    last layers alone, and there is no projection. Of padding, the code leaves keys out of ``attention`` and nothing
    else. (It also leaves out scores of real tokens below -100, which do not occur.)
    """

    options: TinyBertOptions
    teacher_dropout = True

    def __init__(self, options: TinyBertOptions, student: ModelShape, teacher: ModelShape | None) -> None:
        super().__init__(options, student, teacher)
        self.teacher_shape = checks.require_teacher("tinybert", teacher)
        _require_alike("attention heads", student.num_attention_heads, self.teacher_shape.num_attention_heads)
        _require_alike("hidden size", student.hidden_size, self.teacher_shape.hidden_size)
        self.needs_student, self.needs_teacher = _first_and_last(student), _first_and_last(self.teacher_shape)
        self.weights = {"embedding": 1.0, "attention": 1.0, "hidden": 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Pairs of positions times heads, twice; positions times features. Padding included."""
        num_sequences, length = batch.input_ids.shape
        pairs = torch.tensor(float(num_sequences * length**2 * self.student.num_attention_heads), dtype=torch.float64)
        features = torch.tensor(float(num_sequences * length * self.student.hidden_size), dtype=torch.float64)
        return {"embedding": pairs, "attention": pairs, "hidden": features}

    def forward(self, student: Taps, teacher: Taps | None, batch: Batch) -> dict[str, Tensor]:
        """Sums of squared differences: of the first layers' scores, the last layers' scores and hidden states."""
        teacher_taps = checks.present("teacher", teacher)
        last, last_of_teacher = self.student.num_layers, self.teacher_shape.num_layers

        def scores(layer: int, layer_of_teacher: int, valid_keys: Tensor | None) -> Tensor:
            return score_kernel.score_mse(
                student.queries[layer],
                _zero_padding(student.keys[layer], valid_keys),
                teacher_taps.queries[layer_of_teacher],
                _zero_padding(teacher_taps.keys[layer_of_teacher], valid_keys),
                backend=self.options.backend,
            )

        return {
            "embedding": scores(1, 1, None),
            "attention": scores(last, last_of_teacher, batch.attention_mask),
            "hidden": hidden_kernel.hidden_mse(
                student.hidden[last],
                teacher_taps.hidden[last_of_teacher],
                backend=hidden_backend(self.options.backend),
            ),
        }

    def flops(self, length: int, num_masked: int) -> float:
        """`score_mse_flops` twice, and `hidden_mse_flops`."""
        width = self.student.hidden_size
        scores = score_kernel.score_mse_flops(length, self.student.num_attention_heads, width, width)
        return 2.0 * scores + hidden_kernel.hidden_mse_flops(length, width)


def flat_reshape(tap: Tensor, num_heads: int) -> Tensor:
    """A projection [B, L, H, d] as the study cuts it: [B, H, L, d] reshaped to [B, R, L, D/R], given as [B, L, R, D/R].

    With R = H it is the projection itself.
    """
    num_sequences, length, heads, _ = tap.shape
    if heads == num_heads:
        return tap
    return tap.transpose(1, 2).reshape(num_sequences, num_heads, length, -1).transpose(1, 2).contiguous()


def _first_and_last(shape: ModelShape) -> Needs:
    layers = tuple(sorted({1, shape.num_layers}))
    return Needs(queries=layers, keys=layers, hidden=(shape.num_layers,))


def _require_alike(what: str, of_student: int, of_teacher: int) -> None:
    if of_student != of_teacher:
        raise ModelError(
            given=f"objective tinybert with as_coded: {what} {of_student} (student), {of_teacher} (teacher)",
            expected="equal ones: the study's code compares entry by entry and has no projection",
            fix="take as_coded out of the arm, or change the student",
        )


def _zero_padding(keys: Tensor, valid: Tensor | None) -> Tensor:
    """Keys [B, L, H, d] with zeros at padding: all scores with them are then 0, of student and teacher."""
    return keys if valid is None else keys.masked_fill(~valid[:, :, None, None], 0.0)
