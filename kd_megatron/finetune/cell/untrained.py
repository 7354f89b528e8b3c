"""What becomes of the weights that a model's pretraining never changed, as its card lists them.

An objective may not reach the student's last weights: MiniLM's ends at the queries, keys and values of the last layer,
whose output and feed-forward weights keep their initial values. The recipe says what fine-tuning does with them, the
same for every model: ``keep`` starts from those values, ``drop`` takes every layer that has some off the top,
``reinitialise`` draws them anew from the seed of the cell.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_megatron.errors import ModelError

CARD = "kd_megatron.json"  # what kd_megatron says of a model it exported
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")  # in the name of a parameter


@dataclass(frozen=True)
class UntrainedTop:
    """The untrained parameters of an encoder, and what is done with them."""

    action: str  # keep, drop or reinitialise
    names: tuple[str, ...] = ()  # as the classifier names them
    num_layers: int = 0  # of the encoder as it is
    num_layers_left: int = 0  # of the encoder as it is fine-tuned

    def identity(self, model_hash: str) -> str:
        """``model_hash``, with the names where they decide what is trained: the card is not part of that hash."""
        if not self.names or self.action == "keep":
            return model_hash
        return f"{model_hash}-{hashlib.sha256(json.dumps(self.names).encode()).hexdigest()[:8]}"

    def describe(self) -> dict[str, Any] | None:
        """For cells and summary; None when pretraining reached all weights of the encoder."""
        if not self.names:
            return None
        return {"action": self.action, "num_parameters": len(self.names), "num_layers_left": self.num_layers_left}

    def __str__(self) -> str:
        done = {
            "keep": "fine-tuning starts from their initial values",
            "drop": f"{self.num_layers_left} of {self.num_layers} layers are fine-tuned, without the ones they are in",
            "reinitialise": "they are drawn anew from the seed of each cell",
        }
        return f"{len(self.names)} parameters were never trained, such as {self.names[0]}: {done[self.action]}"


def read_untrained_top(path: Path, action: str) -> UntrainedTop:
    """What the card of the model in ``path`` lists, of the encoder alone (a lost pretraining head does not matter).

    Raises:
        ModelError: the card cannot be read, or ``action`` is drop and the untrained weights are not in layers at the
            top with trained ones below.
    """
    listed = _listed(path)
    if not listed:
        return UntrainedTop(action)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    whole = [name if name.startswith(prefix) else prefix + name for name in listed]
    names = tuple(name for name in whole if name in shapes)
    num_layers = config.num_hidden_layers
    left = num_layers
    if action == "drop" and names:
        left = _layers_left(path, [name for name in names if shapes[name] > 1 or _LAYER.search(name)], num_layers)
    return UntrainedTop(action, names, num_layers, left)


def _layers_left(path: Path, names: list[str], num_layers: int) -> int:
    """How many layers remain. Norms and biases outside of layers may stay: they start as the identity."""
    outside = [name for name in names if not _LAYER.search(name)]
    touched = {int(found[1]) for name in names if (found := _LAYER.search(name))}
    left = min(touched, default=num_layers)
    if outside or touched != set(range(left, num_layers)) or left == 0:
        where = f"{outside[0]}, which is in no layer" if outside else f"layers {sorted(touched)} of {num_layers}"
        raise ModelError(
            given=f"untrained_top: drop, but the untrained parameters of {path} are in {where}",
            expected="layers at the top of the encoder, with trained ones below",
            fix="set untrained_top to keep or reinitialise, for all models of the comparison",
        )
    return left


def _listed(path: Path) -> list[str]:
    """The names on the card, if the model has one."""
    card = path / CARD
    if not card.is_file():
        return []
    try:
        return [str(name) for name in json.loads(card.read_text(encoding="utf-8")).get("untrained_parameters", [])]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ModelError(given=f"{card} is not a valid card: {error}", fix="export the model again") from error
