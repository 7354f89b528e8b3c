"""What a reader must know before believing the numbers. Written from the data, so that none is forgotten."""

from dataclasses import replace

from kd_megatron.analysis import break_even
from kd_megatron.analysis.comparisons import OVERALL
from kd_megatron.analysis.fitness import UNFAIR, crossed_seeds, objections
from kd_megatron.analysis.measure import PROBE, measure_of
from kd_megatron.analysis.results import StudyResults
from kd_megatron.analysis.run_checks import Finding
from kd_megatron.analysis.summaries import CacheUse
from kd_megatron.console import units
from kd_megatron.console.units import num_seeds, seeds_of
from kd_megatron.recipe.diff import Difference
from kd_megatron.report.study import control_rows, tables
from kd_megatron.report.study.certainty_tables import INTERVALS
from kd_megatron.report.study.protocol import protocol_caveats
from kd_megatron.report.study.tuning_tables import calibration_caveats, tuning_caveats

TOPS = {  # what fine-tuning does with an untrained top
    "keep": "starts from their initial values",
    "drop": "leaves out the encoder's layers that they are in",
    "reinitialise": "draws those of the encoder anew, from its own seed",
}
FEW_SEEDS = 3
ENOUGH_FOR_COVERAGE = 5  # students of an arm, or fine-tunings of each (docs/statistics.md)


def caveats(results: StudyResults, findings: list[Finding], allowed: list[Difference]) -> list[str]:
    """One sentence or two per caveat, the gravest first."""
    return [
        *_unfinished(results),
        *_unfair(findings, allowed),
        *_seeds(results),
        *_what_seeds_vary(results),
        *_objections(results),
        *protocol_caveats(results),
        *_finetuning(results),
        *control_rows.caveats(results),
        *_repetition(results),
        *_branches(results),
        *_fixed_masks(results),
        *_untrained(results),
        *_untuned(results),
        *tuning_caveats(results),
        *calibration_caveats(results),
        *_teacher(results),
        *results.recipe.notes,
    ]


def _unfinished(results: StudyResults) -> list[str]:
    if not results.missing:
        return []
    return [f"The study is not finished. Missing: {'; '.join(results.missing)}. Means are over what there is."]


def _unfair(findings: list[Finding], allowed: list[Difference]) -> list[str]:
    failed = [finding.check for finding in findings if not finding.passed]
    said = [f"The runs differ in: {'; '.join(failed)} (see the fairness check)."] if failed else []
    if allowed:
        keys = ", ".join(difference.key for difference in allowed)
        said.append(f"The recipe lets arms differ in {keys} beside their objective (see the table of differences).")
    return said


def _objections(results: StudyResults) -> list[str]:
    """What takes verdicts away beside unfairness, which the fairness check tells in full."""
    found = (one for quantity in OVERALL for one in objections(results, quantity) if one.word != UNFAIR)
    return list(dict.fromkeys(one.sentence for one in found))


def _seeds(results: StudyResults) -> list[str]:
    counts = {arm: len(results.runs[arm]) for arm in results.arms}
    several = [num for num in counts.values() if num > 1]
    single = [arm for arm, num in counts.items() if num == 1]
    if not several:
        return ["One seed: no interval can be given, and a difference between arms may be chance."] if single else []
    said = f"Intervals are {INTERVALS[results.interval]} over {seeds_of(several)}"
    said += ", which makes them wide." if min(several) <= FEW_SEEDS else "."
    if single:
        said += f" One seed of {', '.join(single)}: there no interval can be given, and a difference may be chance."
    if len(results.arms) > 2:
        said += (
            f" Those of single numbers are not corrected for picking the best of {len(results.arms)} arms; what is "
            "claimed of a difference is."
        )
    said += " Pretraining seeds are what is counted: a student's score is the mean over its fine-tuning seeds."
    return [said]


def _what_seeds_vary(results: StudyResults) -> list[str]:
    """What an interval over seeds has in it, and what it has not."""
    recipe, said = results.recipe, []
    num_seeds_each = _own_finetuning_seeds(results)
    if recipe.student.initialise.method != "random":
        masks = "" if recipe.data.mask_seed is not None else " and its masks"
        head = ", and an MLM head that the source lacks" if recipe.student.initialise.method == "checkpoint" else ""
        alone = "and what fine-tuning draws" if num_seeds_each else "alone"
        said.append(
            f"Seeds vary the order of the text{masks} {alone}{head}: encoders begin from the same weights in all seeds."
        )
    if num_seeds_each:
        said.append(
            f"Every student is fine-tuned with {num_seeds(num_seeds_each)} of its own: the intervals of scores have "
            "the noise of heads, order and dropout in them. The rows of a task are the same for all."
        )
        if max(num_seeds_each, len(recipe.seeds)) < ENOUGH_FOR_COVERAGE:
            said.append(
                f"With fewer than {ENOUGH_FOR_COVERAGE} students, and of fewer than {ENOUGH_FOR_COVERAGE} fine-tunings "
                "each, intervals of scores at 95 % cover less where fine-tunings collapse: 83 to 91 % in simulations "
                "in which a fifth did (docs/statistics.md)."
            )
    return said


def _own_finetuning_seeds(results: StudyResults) -> int:
    """With how many seeds each student was fine-tuned, at least; 0 where none was, or where they share seeds."""
    numbers = [len(task.scores) for run in results.all_runs() for task in run.tasks.values()]
    return 0 if not numbers or crossed_seeds(results) else min(numbers)


def _finetuning(results: StudyResults) -> list[str]:
    recipe = results.recipe.finetune
    if measure_of(results) is PROBE and results.judged and not results.averaged_tasks:
        return [
            "No task of fine-tuning is fit for an average (see the table of tasks): arms are ranked by the probe's "
            "held-out loss, which favours arms that train MLM."
        ]
    if measure_of(results) is PROBE:
        yet = "" if recipe is None else " yet"
        return [
            f"No fine-tuning{yet}: arms are ranked by the probe's held-out loss, which favours arms that train MLM."
        ]
    assert recipe is not None  # there are scores
    num_cells = recipe.grid.num_settings
    seeds = f"with {'up to ' if recipe.halving and num_cells > 1 else ''}{num_seeds(len(recipe.seeds))} of fine-tuning"
    selected = f"The best of {num_cells} fine-tuning settings is selected on"
    if num_cells == 1:
        said = [f"Scores are on the dev split, {seeds}."]
    elif recipe.selection.on == "dev":
        alike = f"alike for all arms, {seeds} per setting"
        said = [f"{selected} the dev split that is also reported, {alike}: absolute scores are optimistic."]
    else:
        share = f"{recipe.selection.fraction:.0%} of the training rows, which no arm trains on"
        said = [f"{selected} {share}, {seeds} per setting; scores are on the dev split."]
    for task, note in tables.partial_tasks(results).items():
        said.append(f"{task} is scored on a partial or substitute split{f': {note}' if note else ''}.")
    return said


def _repetition(results: StudyResults) -> list[str]:
    epochs = {arm: max(run.summary.epochs for run in results.runs[arm].values()) for arm in results.arms}
    repeated = [f"{arm} {value:.1f} times" for arm, value in epochs.items() if value > 1.05]
    return [f"Data is repeated: {', '.join(repeated)} on average."] if repeated else []


def _branches(results: StudyResults) -> list[str]:
    """Of the students on the way."""
    markers = results.recipe.markers
    found = [branch for run in results.all_runs() for branch in run.branches]
    if markers is None or not found:
        return []
    places = ", ".join(f"{100 * at:g}" for at in markers.branches)
    if markers.decay == 0:
        return [
            f"Scores at {places} % of the budget are of the run as it was there (markers.decay 0): its learning rate "
            "had not come down, and a run with that budget would have ended better."
        ]
    said = [
        f"Scores at {places} % of the budget are of branches: each leaves its run for the last "
        f"{100 * markers.decay:g} % of its own budget and brings the learning rate down to zero. Branches of one run "
        f"share what came before, so they are not independent of each other; their "
        f"{sum(branch.decay_tokens for branch in found):,} tokens in all are charged to no arm."
    ]
    short = ", ".join(f"{one.arm} seed {one.seed} at {100 * one.fraction:g} %" for one in found if not one.decayed)
    if short:
        said.append(f"The budget left no step for the learning rate to come down in these branches: {short}.")
    return said


def _fixed_masks(results: StudyResults) -> list[str]:
    seed = results.recipe.data.mask_seed
    if seed is None:
        return []
    said = [f"Masks are fixed (data.mask_seed {seed}): all arms, seeds and epochs see a window with the same mask."]
    for use in _caches(results):
        shared = f", divided by {use.num_students} students" if use.num_students > 1 else ""
        said.append(
            f"Kept of the teacher in {use.path}: {use.kept}, {units.count(use.bytes_per_token)} bytes "
            f"per token, {use.gib_on_disk:.2g} GiB; {units.count(use.rows_filled)} windows written, "
            f"{units.count(use.rows_read)} read. A student is charged for a window at its first visit{shared}."
        )
    return said


def _caches(results: StudyResults) -> list[CacheUse]:
    """What was cached, one entry for each directory: as the last run left it, with the uses of all runs."""
    found: dict[str, CacheUse] = {}
    for run in results.all_runs():
        use = run.summary.teacher.cache if run.summary.teacher else None
        if use:
            before = found.get(use.path)
            filled, read = (before.rows_filled, before.rows_read) if before else (0, 0)
            found[use.path] = replace(use, rows_filled=use.rows_filled + filled, rows_read=use.rows_read + read)
    return list(found.values())


def _untrained(results: StudyResults) -> list[str]:
    said = []
    for arm in results.arms:
        names = next(iter(results.runs[arm].values())).summary.untrained_parameters
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            said.append(
                f"{arm} gives no gradient to {units.counted(len(names), 'parameter tensor')} ({shown}): "
                f"fine-tuning {TOPS[results.recipe.finetune.untrained_top if results.recipe.finetune else 'keep']}."
            )
    return said


def _untuned(results: StudyResults) -> list[str]:
    rates = {recipe.training.learning_rate for recipe in results.resolved.values()}
    if results.tuning is not None or len(rates) > 1:  # tuning may choose the same one for all
        return []
    return [f"All arms use one learning rate ({rates.pop():g}) and untuned weights; an arm may do better with its own."]


def _teacher(results: StudyResults) -> list[str]:
    cost, source = break_even.teacher_flops(results)
    if cost is None or not break_even.num_sharing(results):
        return []
    return [f"The budget does not include the teacher's own training ({units.flops(cost)} FLOPs; {source})."]
