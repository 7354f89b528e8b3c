"""Refuses what cannot be a fair study, before anything is spent on it."""

from collections.abc import Sequence
from pathlib import Path

from kd_megatron.data.pools import planned_pools
from kd_megatron.engine.batch_split import split
from kd_megatron.files.manifest import MANIFEST, read_manifest
from kd_megatron.ranks import dist
from kd_megatron.recipe import StudyRecipe, arms
from kd_megatron.study import fairness, layout, tuning
from kd_megatron.study.cells import cell_recipe, places
from kd_megatron.study.claim import claim_study
from kd_megatron.study.effective import effective_recipe
from kd_megatron.study.registration import register


def begin(recipe: StudyRecipe, directory: Path, redo: Sequence[str] = ()) -> None:
    """Refuse what cannot be a fair study, make ``directory`` this one's own, write down what it promises. Collective.

    Raises:
        RecipeError: the arms differ in more than the study allows, a trial of its tuning cannot be run, or the budget
            is too small for a step and the validations.
        DataError: a pool of ``unique_tokens`` is larger than the text, or holds no window.
        OutputError: ``directory`` holds another study, or runs that the recipe has made stale.
    """
    fairness.check(recipe)
    tuning.check(recipe)
    refuse_too_small(recipe, directory)
    require_pools(recipe)
    claim_study(recipe, directory, redo)
    dist.on_main(lambda: register(recipe, directory))


def refuse_too_small(recipe: StudyRecipe, directory: Path) -> None:
    """Raise `RecipeError` for a budget below one step, or with fewer steps than validations, where that can be told.

    So is a batch refused that so many processes cannot share. Looked at are arms that are not trained yet. Tokens can
    always be counted, FLOPs once the data is prepared; seconds are calibration's affair.
    """
    from kd_megatron.engine.flops import arm_cost, charged_flops_per_token
    from kd_megatron.study.budget_checks import require_enough

    runs = {arm: [layout.arm_directory(directory, arm, seed) for seed in recipe.seeds] for arm in recipe.arms}
    waiting = [arm for arm, places in runs.items() if any(layout.finished_run(place) is None for place in places)]
    if tuning.has_chosen(recipe, directory):
        charged = effective_recipe(recipe, directory)
    else:
        charged = tuning.less_trials(recipe, at_most=True)
    resolved = {arm: arms.resolve_arm(charged, arm) for arm in waiting}
    for one in resolved.values():
        split(one.training, dist.world_size())  # refuses a batch that so many processes cannot share
    prices = dict.fromkeys(resolved, 0.0)
    if recipe.budget.unit == "flops":
        shards = Path(recipe.data.shards[0].path)
        if not (shards / MANIFEST).is_file():
            return
        vocab_size = read_manifest(str(shards)).vocab_size
        prices = {arm: charged_flops_per_token(one, arm_cost(one, arm, vocab_size)) for arm, one in resolved.items()}
    for arm, one in resolved.items():
        require_enough(one, arm, prices[arm])


def require_pools(recipe: StudyRecipe) -> None:
    """Raise `DataError` for a pool that the text is too small for, of any cell, where the data is prepared."""
    paths = [shards.path for shards in recipe.data.shards]
    if not all((Path(path) / MANIFEST).is_file() for path in paths):
        return
    manifests = [read_manifest(path) for path in paths]
    for one in [cell_recipe(recipe, place) for place in places(recipe)] or [recipe]:
        planned_pools(one.data, manifests)
