"""One probability of dropout for every model, whatever its architecture calls it."""

from pathlib import Path
from typing import Any

from torch import nn

from kd_megatron.errors import ModelError

FIX = "set dropout to null, for all models of the comparison"


def set_dropout(config: Any, dropout: float, path: Path) -> None:
    """Set every probability of dropout that ``config``, of the model in ``path``, has: hidden states, attention, head.

    Raises:
        ModelError: it has none.
    """
    names = [name for name, value in config.to_dict().items() if "dropout" in name and _is_probability(value)]
    if not names and dropout > 0:
        raise ModelError(
            given=f"dropout: {dropout:g}, but the configuration of {path} has no dropout",
            expected="a model that has it, or dropout: null",
            fix=FIX,
        )
    for name in names:
        setattr(config, name, dropout)


def require_dropout(model: nn.Module, dropout: float, path: Path) -> None:
    """Hold ``model`` to what its configuration was told. Raises `ModelError` when it has another one somewhere."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p != dropout:
            raise ModelError(
                given=f"dropout: {dropout:g}, but {name} of {path} keeps {module.p:g}",
                expected="a model whose configuration decides all its dropout",
                fix=FIX,
            )


def _is_probability(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
