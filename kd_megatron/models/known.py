"""Sizes of well-known public encoders, so that a study can be planned without asking the hub.

Training reads the real config. Source: the ``config.json`` of each model on the hub.
"""

from transformers import BertConfig, PretrainedConfig

from kd_megatron.files import hub
from kd_megatron.models.build import model_config
from kd_megatron.recipe.paths import expand

VOCAB_SIZE = 30_522
KNOWN = {  # hidden size, layers, attention heads, feed-forward size
    "google-bert/bert-base-uncased": (768, 12, 12, 3072),
    "google-bert/bert-large-uncased": (1024, 24, 16, 4096),
}


def config_or_known(path: str, revision: str | None = None) -> PretrainedConfig:
    """The config of the model at ``path``; from the table above where it is there. Raises `ModelError` otherwise."""
    if path not in KNOWN:
        return model_config(
            hub.local_directory(path, revision, "teacher", ("config.json",)) if revision else expand(path)
        )
    hidden_size, num_layers, num_heads, inner_size = KNOWN[path]
    return BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=inner_size,
    )
