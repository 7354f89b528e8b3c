"""How much text a run may see: the windows of each shard set, and the pool that ``unique_tokens`` leaves of them."""

from collections.abc import Sequence

from kd_megatron.data.order import Blend
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import Manifest
from kd_megatron.recipe import DataRecipe


def planned_pools(recipe: DataRecipe, manifests: Sequence[Manifest]) -> list[int]:
    """`pool_sizes` of what ``manifests``, one of each source, say that there is to train on; no shard is opened.

    A window has [CLS] and [SEP] beside its tokens, and does not reach from one shard into the next.
    """
    inside = recipe.sequence_length - 2
    available = [sum(shard.tokens // inside for shard in manifest.split("train")) for manifest in manifests]
    return pool_sizes(recipe, available)


def pool_sizes(recipe: DataRecipe, available: Sequence[int]) -> list[int]:
    """Windows of each source that a run may see. A cap is dealt out by weight: smaller pools lie in larger ones.

    Args:
        recipe: has the sources, their weights and the cap.
        available: windows that each source holds.

    Raises:
        DataError: a source holds fewer windows than the cap takes of it, or the cap takes none.
    """
    if recipe.unique_tokens is None:
        return list(available)
    pools = Blend([source.weight for source in recipe.shards]).counts(recipe.unique_tokens // recipe.sequence_length)
    for source, pool, size in zip(recipe.shards, pools, available, strict=True):
        if not 0 < pool <= size:
            raise DataError(
                given=f"data.unique_tokens={recipe.unique_tokens} takes {pool} windows of "
                f"{recipe.sequence_length} tokens from {source.path}, which has {size}",
                expected=f"at least 1 and at most {size} (about {size * recipe.sequence_length} tokens)",
                fix="change data.unique_tokens or the weights, or prepare a larger corpus",
            )
    return pools
