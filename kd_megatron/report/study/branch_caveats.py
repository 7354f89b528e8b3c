"""What a reader must know of students that branched off a run."""

from kd_megatron.analysis import results
from kd_megatron.recipe import MarkersRecipe


def caveats(study: results.StudyResults) -> list[str]:
    """What must be known of the students on the way; none where there are none."""
    markers = study.recipe.markers
    found = [marker for run in study.all_runs() for marker in run.branches]
    if markers is None or not found:
        return []
    places = ", ".join(f"{100 * at:g}" for at in markers.branches)
    if markers.decay == 0:
        return [
            f"Scores at {places} % of the budget are of the run as it was there (markers.decay 0): its learning rate "
            "had not come down, and a run with that budget would have ended better."
        ]
    extra = sum(marker.decay_tokens for marker in found)
    said = (
        f"Scores at {places} % of the budget are of branches: each leaves its run for the last "
        f"{100 * markers.decay:g} % of its own budget and brings the learning rate down to zero. Branches of one run "
        f"share what came before, so they are not independent of each other; their {extra:,} tokens in all are "
        "charged to no arm."
    )
    return [said, *_short_branches(study, markers)]


def _short_branches(study: results.StudyResults, markers: MarkersRecipe) -> list[str]:
    short = [
        f"{run.arm} seed {run.seed} at {100 * marker.fraction:g} %"
        for run in study.all_runs()
        for marker in run.branches
        if not marker.decayed
    ]
    if not short:
        return []
    return [f"The budget left no step for the learning rate to come down in these branches: {', '.join(short)}."]
