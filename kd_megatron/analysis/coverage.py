"""How often 95 % intervals of scores hold the truth where fine-tunings collapse, by simulation, and what is said of it.

`tests/analysis/two_levels.py` draws the studies and prints the table (docs/statistics.md), with the code that reports
use. A fifth of the fine-tunings of a task end at the majority class, sixty-five points below the others.
"""

from kd_megatron.analysis.results import StudyResults
from kd_megatron.console.units import counted

PROMISED = 93.0  # percent: what an interval at 95 % must hold, rough as simulated worlds are
MOST_STUDENTS, MOST_FINETUNINGS = 8, 5  # of the simulation; more of either hold more
# students -> percent of studies whose interval of an arm's mean holds it, by fine-tunings of each student, 1 to 5
OF_A_MEAN = {
    2: (69.9, 87.2, 89.2, 92.0, 94.2),
    3: (49.3, 73.9, 86.7, 93.0, 96.7),
    4: (58.6, 82.9, 93.2, 97.3, 98.5),
    5: (66.3, 89.3, 96.7, 95.5, 97.2),
    6: (73.3, 93.0, 95.8, 96.7, 96.7),
    7: (78.8, 95.4, 94.0, 95.9, 97.4),
    8: (82.3, 96.4, 96.7, 96.7, 97.4),
}
# the same of a difference where the fine-tunings of one of the two arms collapse and the other's do not
OF_A_DIFFERENCE = {
    2: (75.8, 95.3, 95.5, 95.8, 96.1),
    3: (54.9, 75.0, 87.1, 93.1, 96.7),
    4: (58.8, 82.9, 93.2, 97.3, 98.2),
    5: (66.3, 89.3, 96.7, 96.2, 97.3),
    6: (73.3, 93.0, 95.8, 96.7, 97.1),
    7: (78.8, 95.4, 94.2, 96.1, 97.3),
    8: (82.3, 95.8, 96.5, 96.6, 97.5),
}


def shortfall(results: StudyResults) -> list[str]:
    """What intervals of scores hold here where a fifth of the fine-tunings collapse; empty where that is enough."""
    runs = [run for run in results.all_runs() if run.finetune]
    per_arm = [num for arm in results.arms if (num := len(results.by_seed(arm, "score"))) > 1]
    tuned = [len(task.scores) for run in runs for task in run.tasks.values() if task.scores]
    if not per_arm or not tuned:
        return []
    students, finetunings = min(per_arm), min(tuned)
    place = min(students, MOST_STUDENTS), min(finetunings, MOST_FINETUNINGS) - 1
    mean, difference = (table[place[0]][place[1]] for table in (OF_A_MEAN, OF_A_DIFFERENCE))
    if min(mean, difference) >= PROMISED:
        return []
    return [
        f"Where a fifth of a task's fine-tunings collapse, intervals at 95 % from {students} students with "
        f"{counted(finetunings, 'fine-tuning')} each hold a mean score in {mean:.0f} % of simulated studies, and a "
        f"difference to an arm without collapses in {difference:.0f} %, because a study may by chance have seen none. "
        "More fine-tunings of each student help (docs/statistics.md)."
    ]
