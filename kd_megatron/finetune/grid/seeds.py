"""The number that a fine-tuning really draws from: a function of the model and of the seed that the recipe lists.

One shared seed would make the noise of heads, order and dropout common to all students of a study: which student a draw
suits is then the same for every model that is like it, and no interval over students has that noise in it.
"""

import hashlib

from kd_megatron.recipe import FinetuneRecipe

SEED_BYTES = 4  # what numpy's and torch's generators take


def used_seeds(recipe: FinetuneRecipe, whose: str) -> dict[int, int]:
    """Each listed seed -> the number that head, order of the rows and dropout are drawn from.

    Args:
        recipe: with ``crossed_seeds`` every model uses the listed numbers themselves.
        whose: what tells this model from every other one: its place in a study, or the hash of its files.
    """
    if recipe.crossed_seeds:
        return {seed: seed for seed in recipe.seeds}
    return {seed: own_seed(whose, seed) for seed in recipe.seeds}


def own_seed(whose: str, listed: int) -> int:
    """A seed of ``whose`` alone: two models share one by a chance of 1 in 4 billion."""
    return int.from_bytes(hashlib.sha256(f"fine-tuning of {whose}: {listed}".encode()).digest()[:SEED_BYTES], "big")
