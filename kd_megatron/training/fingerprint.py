"""What a run was made of: commit, versions, hardware, data and teacher. Equal fingerprints make runs comparable."""

from typing import Any

from kd_megatron import dist, hub, machine
from kd_megatron.data.loader import Loader
from kd_megatron.manifest import weights_hash

PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "numpy", "tokenizers")


def fingerprint(loader: Loader, teacher_path: str | None) -> dict[str, Any]:
    """Facts of this process and its inputs, as plain data."""
    facts = machine.facts(PACKAGES)
    facts["hardware"]["num_processes"] = dist.world_size()
    return {
        **facts,
        "data": loader.content_hash,
        "tokenizer": loader.tokenizer_sha256,
        "teacher": weights_hash(teacher_path),
        "teacher_source": hub.source_of(teacher_path),
    }
