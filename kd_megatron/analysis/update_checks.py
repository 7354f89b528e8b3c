"""Was an arm muted? What Adam's epsilon and clipping took of each arm's updates, as its runs recorded it.

Arms have losses of different sizes. An epsilon beside the gradients of one of them slows that arm alone, and so does a
clipping norm that only some arms reach: both make arms differ in more than the objective.
"""

from kd_megatron.analysis.findings import Finding
from kd_megatron.analysis.results import StudyResults

EPSILON_SHARE, CLIPPED_SHARE = "epsilon_share", "clipped_share"  # columns of a run's metrics
MOST_OF_EPSILON = 0.10  # of an arm's updates
LARGEST_FACTOR = 2.0  # between what clipping leaves of the gradients of two arms


def update_findings(results: StudyResults) -> list[Finding]:
    """One finding for epsilon and one for clipping; none of runs that recorded neither."""
    epsilon, clipped = (_by_arm(results, column) for column in (EPSILON_SHARE, CLIPPED_SHARE))
    found = []
    if epsilon:
        passed = max(epsilon.values()) <= MOST_OF_EPSILON
        found.append(Finding("share of updates that Adam's epsilon took", passed, _listed(epsilon)))
    if clipped:
        left = [1.0 - share for share in clipped.values()]
        passed = max(left) <= LARGEST_FACTOR * min(left)
        found.append(Finding("share of gradients that clipping took", passed, _listed(clipped)))
    return found


def _by_arm(results: StudyResults, column: str) -> dict[str, float]:
    """Arm -> the mean of a column over all rows of all its runs; arms without such rows are left out."""
    found = {}
    for arm in results.arms:
        rows = [row for run in results.runs[arm].values() for row in run.metrics]
        if values := [row[column] for row in rows if row.get(column) is not None]:
            found[arm] = sum(values) / len(values)
    return found


def _listed(shares: dict[str, float]) -> str:
    return ", ".join(f"{arm} {100 * share:.2g} %" for arm, share in shares.items())
