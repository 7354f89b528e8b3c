"""Whether instruments are fit: what takes a verdict away, of which quantity, and why.

Every verdict of a report asks here. An objection is one reason, as a word for the column of verdicts and as a sentence
for the caveats; the gravest comes first.
"""

from collections import Counter
from dataclasses import dataclass

from kd_megatron.analysis.measure import OWN_HEAD, PROBE, SCORE
from kd_megatron.analysis.once import once
from kd_megatron.analysis.preregistration import finetuned_again, students_in_words, trained_again
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import unfair_checks
from kd_megatron.console.units import counted

FIT_GAP = 0.05  # nats between the probe and an own head, beyond which the probe is no measure of what students know

FEWEST_FINETUNING_SEEDS = 3  # of a student: fewer do not show how much of its score is the luck of a draw
UNFAIR, SEEN = "unfair", "seen before"
OF_TASKS = (SCORE.quantity, "task")  # quantities that fine-tuning measures


@dataclass(frozen=True)
class Objection:
    """One reason for which nothing is claimed of a quantity."""

    word: str  # of the column of verdicts, such as "unfair"
    sentence: str  # of the caveats


@once
def objections(results: StudyResults, quantity: str, task: str | None = None) -> list[Objection]:
    """Why nothing may be claimed of a quantity (`StudyResults.by_seed`); empty where its instruments are fit."""
    found = [*_seen_before(results, quantity), *_unfair(results)]
    if quantity == PROBE.quantity:
        found += [*_probe_is_unfit(results), *_probe_has_not_converged(results)]
    if quantity in OF_TASKS and any(student.finetune for student in results.all_runs()):
        found += [*_crossed_seeds(results), *_no_majority(results), *_few_finetuning_seeds(results)]
    return found


def objection(results: StudyResults, quantity: str, task: str | None = None) -> str | None:
    """The word of the gravest objection; None where there is none."""
    return next((one.word for one in objections(results, quantity, task)), None)


def _probe_has_not_converged(results: StudyResults) -> list[Objection]:
    """That a probe ran out of steps, or that nobody recorded whether it did."""
    probed = [run for run in results.all_runs() if run.probe_loss is not None]
    if short := [run.name for run in probed if run.summary.probe and not run.summary.probe.converged]:
        listed = ", ".join(short)
        sentence = (
            f"The probe has not converged for {listed}: it ran out of validation.probe_steps while its loss still "
            "fell. It gives no verdict."
        )
        return [Objection("probe unconverged", sentence)]
    if any(run.summary.probe is None for run in probed):
        sentence = (
            "The probe was trained for a fixed number of steps, and whether it had converged was not recorded. It "
            "gives no verdict."
        )
        return [Objection("convergence not recorded", sentence)]
    return []


def _unfair(results: StudyResults) -> list[Objection]:
    if checks := unfair_checks(results):
        return [Objection(UNFAIR, f"Arms with the same seed differ in more than their objective ({checks[0]}).")]
    return []


def _seen_before(results: StudyResults, quantity: str) -> list[Objection]:
    """That seeds were done again after a report had shown them; of scores, fine-tunings as well."""
    found = []
    if again := trained_again(results):
        found.append(Objection(SEEN, _seen(students_in_words(again), "trained", "results")))
    if quantity in OF_TASKS and (again := finetuned_again(results)):
        found.append(Objection(SEEN, _seen(students_in_words(again), "fine-tuned", "scores")))
    return found


def _seen(students: str, done: str, what: str) -> str:
    return (
        f"Seen before: {students} were {done} again after a report had shown their {what}, so that these were chosen "
        "between two. Nothing is claimed of them; new seeds in a study of their own would be evidence."
    )


@once
def crossed_seeds(results: StudyResults) -> list[int]:
    """The fine-tuning seeds that two students or more drew from, as the records have them, in order."""
    used = (
        {seed for task in student.tasks.values() for seed in task.used_seeds}
        for student in results.all_students()
        if student.finetune
    )
    numbers = Counter(seed for seeds in used for seed in seeds)
    return sorted(seed for seed, number in numbers.items() if number > 1)


def _crossed_seeds(results: StudyResults) -> list[Objection]:
    if not (crossed := crossed_seeds(results)):
        return []
    sentence = (
        f"Students are fine-tuned with the same {counted(len(crossed), 'seed')} ({', '.join(map(str, crossed))}): the "
        "noise of heads, order and dropout is common to them, and the intervals of scores do not have it. The score of "
        "one student on a small task can move by tens of points with that seed, so scores give no verdict."
    )
    return [Objection("crossed seeds", sentence)]


def _no_majority(results: StudyResults) -> list[Objection]:
    """That nobody can tell which tasks an average may have in it."""
    if results.judged is not None:
        return []
    sentence = (
        "The scores of the majority class were not recorded, so the rule of inclusion cannot be applied: the average "
        "is over all tasks, whether fine-tuning works on them or not, and scores give no verdict."
    )
    return [Objection("majority not recorded", sentence)]


def _few_finetuning_seeds(results: StudyResults) -> list[Objection]:
    fewest = min(len(task.scores) for student in results.all_runs() for task in student.tasks.values())
    if fewest >= FEWEST_FINETUNING_SEEDS:
        return []
    sentence = (
        f"Students are fine-tuned with {counted(fewest, 'seed')} each: how much of a score is the luck of one draw "
        f"cannot be seen with fewer than {FEWEST_FINETUNING_SEEDS}, so scores give no verdict."
    )
    return [Objection("few fine-tuning seeds", sentence)]


@once
def probe_gaps(results: StudyResults, arm: str) -> dict[int, float]:
    """Seed -> the probe's loss minus that of the own head, in nats; of an arm that trains a head."""
    own, probe = results.by_seed(arm, OWN_HEAD.quantity), results.by_seed(arm, PROBE.quantity)
    return {seed: probe[seed] - own[seed] for seed in sorted(own.keys() & probe.keys())}


def _probe_is_unfit(results: StudyResults) -> list[Objection]:
    """That the probe reads more than students know, where own heads show it."""
    found = [gap for arm in results.arms for gap in probe_gaps(results, arm).values()]
    if not found or max(found) <= FIT_GAP:
        return []
    sentence = (
        f"The probe is unfit: where students have trained heads, its loss is {min(found):.2f} to {max(found):.2f} nats "
        f"above theirs (at most {FIT_GAP:g} would be fit). It gives no verdict; the table of own heads stands next to "
        "it."
    )
    return [Objection("probe unfit", sentence)]
