"""Where a document goes: its split and shard follow from its cleaned text alone.

So the same document is on the same side of the held-out split in every run and every corpus, duplicates meet in
one shard (where they are dropped), and no order of reading or number of workers can change a shard's content.
"""

import hashlib

from kd_megatron.recipe import CorpusRecipe

DIGEST_BYTES = 16
_HALF = 1 << 64


def document_digest(text: str) -> bytes:
    """The 16-byte BLAKE2b digest of a cleaned text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def num_valid_shards(recipe: CorpusRecipe) -> int:
    """Held-out shards: about as large as the training ones, at least one when anything is held out."""
    if recipe.valid_fraction == 0:
        return 0
    return max(1, round(recipe.num_shards * recipe.valid_fraction))


def shard_names(recipe: CorpusRecipe) -> list[str]:
    """All shards of a corpus: ``train-00000`` ... then ``valid-00000`` ..."""
    names = [f"train-{index:05d}" for index in range(recipe.num_shards)]
    return names + [f"valid-{index:05d}" for index in range(num_valid_shards(recipe))]


def shard_of(digest: bytes, recipe: CorpusRecipe) -> str:
    """The shard of the document with this digest.

    The first 8 bytes choose the split (raising ``valid_fraction`` only moves documents from train to valid), the
    last 8 the shard.
    """
    draw = int.from_bytes(digest[:8], "big")
    index = int.from_bytes(digest[8:], "big")
    if draw < int(recipe.valid_fraction * _HALF):
        return f"valid-{index % num_valid_shards(recipe):05d}"
    return f"train-{index % recipe.num_shards:05d}"
