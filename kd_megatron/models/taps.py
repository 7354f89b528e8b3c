"""Queries, keys, values and hidden states of named layers, as outputs of a Hugging Face encoder's forward.

Every encoder whose attention goes through the library's attention interface can be tapped: we register one
attention function, which hands the projections over and then runs the library's own SDPA. No architecture is
rewritten, and with taps on the outputs are what they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kd_megatron.errors import ModelError
from kd_megatron.tensors import Batch, FactoredLogits, Needs, Taps

ATTENTION = "kd_sdpa"
HEADS = {
    "bert": "cls",
    "roberta": "lm_head",
    "xlm-roberta": "lm_head",
    "camembert": "lm_head",
}  # model type -> MLM head

_projections: ContextVar[dict[int, tuple[Tensor, Tensor, Tensor]] | None] = ContextVar("projections", default=None)


def _tapped_sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    captured = _projections.get()
    if captured is not None:
        captured[int(module.layer_idx) + 1] = (query, key, value)  # type: ignore[arg-type]
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)


AttentionInterface.register(ATTENTION, _tapped_sdpa)
# Without a mask function of the same name the library passes no mask at all, and padding is silently attended to.
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def _capture() -> Iterator[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    captured: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    token = _projections.set(captured)
    try:
        yield captured
    finally:
        _projections.reset(token)


class TappedEncoder(nn.Module):
    """A Hugging Face masked-language model that returns exactly what `Needs` names.

    Args:
        model: an ``...ForMaskedLM`` model built with ``attn_implementation=ATTENTION``.
        needs: the outputs of `forward`.
    """

    def __init__(self, model: PreTrainedModel, needs: Needs) -> None:
        super().__init__()
        if model.config.model_type not in HEADS:
            raise ModelError(
                given=f"model type {model.config.model_type!r}",
                expected=f"one of {', '.join(sorted(HEADS))}",
                fix="use such an encoder, or name the type's MLM head in kd_megatron/models/taps.py",
            )
        self.model, self.needs = model, needs

    @property
    def decoder(self) -> nn.Linear:
        """The last layer of the MLM head: states [..., D] -> logits [..., V]."""
        decoder = self.model.get_output_embeddings()
        assert isinstance(decoder, nn.Linear)
        return decoder

    def head(self, states: Tensor) -> FactoredLogits:
        """The MLM head: hidden states [..., D] -> logits [..., V], all but the decoder's product made."""
        head: Any = getattr(self.model, HEADS[self.model.config.model_type])
        if hasattr(head, "predictions"):  # BERT
            transformed = head.predictions.transform(states)
        else:  # RoBERTa and its kin
            transformed = head.layer_norm(functional.gelu(head.dense(states)))
        return FactoredLogits(transformed, self.decoder.weight, self.decoder.bias)

    def read_directly(self) -> list[nn.Parameter]:
        """Parameters that a loss reads from `FactoredLogits`, not the layer that owns them in its forward."""
        return list(self.decoder.parameters()) if self.needs.head else []

    @property
    def embeddings(self) -> nn.Parameter:
        """The input embeddings, [V, D]."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, batch: Batch, inputs: str = "masked") -> Taps:
        """Run the encoder on ``batch.input_ids`` (``inputs="masked"``) or ``batch.clean_ids`` (``"clean"``)."""
        needs = self.needs
        with _capture() as projections:
            output = self.model.base_model(
                input_ids=batch.input_ids if inputs == "masked" else batch.clean_ids,
                attention_mask=batch.attention_mask,
                output_hidden_states=bool(needs.hidden),
            )
        states = output.hidden_states if needs.hidden else ()
        last = output.last_hidden_state
        return Taps(
            queries={layer: projections[layer][0].transpose(1, 2) for layer in needs.queries},
            keys={layer: projections[layer][1].transpose(1, 2) for layer in needs.keys},
            values={layer: projections[layer][2].transpose(1, 2) for layer in needs.values},
            hidden={layer: states[layer] for layer in needs.hidden},
            logits=self.head(batch.at_slots(last)) if needs.logits else None,
            all_logits=self.head(last) if needs.all_logits else None,
        )
