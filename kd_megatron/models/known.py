"""Sizes of well-known public encoders, so that a study can be planned where the hub cannot be reached.

Only `plan` uses them; training reads the real config. Source: the ``config.json`` of each model on the hub.
"""

from typing import Any

from transformers import BertConfig, PretrainedConfig

from kd_megatron.errors import ModelError
from kd_megatron.models.build import model_config

_BASE: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
KNOWN = {"google-bert/bert-base-uncased": _BASE, "google-bert/bert-large-uncased": _LARGE}


def config_or_known(path: str) -> PretrainedConfig:
    """The model's config; for the models above also without network."""
    try:
        return model_config(path)
    except ModelError:
        if path not in KNOWN:
            raise
        return BertConfig(vocab_size=30_522, **KNOWN[path])
