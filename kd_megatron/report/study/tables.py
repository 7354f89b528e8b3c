"""The report's tables: each is a list of rows of raw values, shown with units on the page and written whole to csv."""

from collections.abc import Callable
from typing import Any

from kd_megatron.analysis import break_even, comparisons
from kd_megatron.analysis.results import FinishedRun, StudyResults
from kd_megatron.analysis.run_checks import Finding
from kd_megatron.console import units
from kd_megatron.ledger import ACCOUNTS
from kd_megatron.objectives.words import of_arm_in_words
from kd_megatron.recipe.diff import Difference
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, named, numbers, texts

ACTIVITIES = ("student", "teacher", "loss", "data_wait", "other")


def mean_over(runs: list[FinishedRun], read: Callable[[FinishedRun], float | None]) -> float | None:
    """Plain mean over runs; None when a run lacks the value or there is no run."""
    values = [read(run) for run in runs]
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def scores(results: StudyResults) -> Table:
    """Per arm: average score and probe loss with their differences to the reference, then each task's score."""
    reference = results.reference
    columns = [*texts("arm"), Column("seeds", "seeds")]
    if results.tasks:
        columns += [
            Column("score", "average", words.score),
            Column("difference", f"difference to {reference}", words.score_difference),
        ]
    columns += [
        Column("probe_loss", "held-out MLM loss (probe)", words.loss),
        Column("probe_loss_difference", f"its difference to {reference}", words.loss_difference),
    ]
    columns += [Column(f"score_{task}", task_heading(results, task), words.score) for task in results.tasks]
    interval = "t-interval" if results.interval == "t" else "bootstrap interval"
    mean = f"Mean over seeds ± half of the 95 % {interval}"
    if max((len(runs) for runs in results.runs.values()), default=0) < 2:
        mean = "One seed, so without intervals"
    note = (
        f"Scores in points of 100 ({_metrics_in_words(results)}); "
        f"the average is over tasks. {mean}. Differences are paired by seed. "
        "The probe is one MLM head trained on the frozen student, alike for all arms; lower is better, in nats."
    )
    if not results.tasks:
        note = f"{mean}; differences are paired by seed; lower is better, in nats."
    if partial_tasks(results):
        note += " * scored on a partial or substitute split."
    strong = _winners(results)
    if strong:
        note += " Bold: better than every other arm by the verdicts of this report's family (see the differences)."
    rows = [_scores_row(results, arm) for arm in results.arms]
    return Table("scores", "What each arm scores", columns, rows, note, strong)


def _metrics_in_words(results: StudyResults) -> str:
    """Each metric with its tasks, such as ``accuracy: SST-2, RTE; Matthews correlation: CoLA``."""
    metrics = {
        task: run.tasks[task].metric for run in results.all_runs() for task in results.tasks if task in run.tasks
    }
    tasks_of = {metric: [task for task in metrics if metrics[task] == metric] for metric in metrics.values()}
    return "; ".join(f"{metric}: {', '.join(tasks)}" for metric, tasks in tasks_of.items())


def _winners(results: StudyResults) -> frozenset[tuple[int, str]]:
    """The cells of arms that win their column beyond doubt."""
    wanted: list[tuple[str, str, str | None]] = [(quantity, quantity, None) for quantity in comparisons.OVERALL]
    wanted += [(f"score_{task}", "task", task) for task in results.tasks]
    found = ((column, comparisons.winner(results, quantity, task)) for column, quantity, task in wanted)
    return frozenset((results.arms.index(arm), column) for column, arm in found if arm)


def _scores_row(results: StudyResults, arm: str) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "seeds": len(results.runs[arm])}
    if results.tasks:
        row |= {"score": results.mean(arm, "score"), "difference": results.difference(arm, "score")}
    row["probe_loss"] = results.mean(arm, "probe_loss")
    row["probe_loss_difference"] = results.difference(arm, "probe_loss")
    for task in results.tasks:
        row[f"score_{task}"] = results.mean(arm, "task", task)
    return row


def partial_tasks(results: StudyResults) -> dict[str, str]:
    """Task -> note, of the tasks that were scored on a partial or substitute split."""
    found: dict[str, str] = {}
    for run in results.all_runs():
        found |= {task: summary.note for task, summary in run.tasks.items() if summary.partial_split}
    return found


def task_heading(results: StudyResults, task: str) -> str:
    """The task's name, starred when its split is partial."""
    return task + ("*" if task in partial_tasks(results) else "")


def spending(results: StudyResults) -> Table:
    """Per arm: what the budget bought."""
    reference = mean_over(_runs(results, results.reference), lambda run: run.summary.tokens_per_second)
    rows = [_spending_row(results, arm, reference) for arm in results.arms]
    columns = [
        *texts("arm", "objective"),
        *numbers(units.count, tokens="tokens seen", unique_tokens="unique tokens", steps="steps"),
        Column("flops", "FLOPs charged", units.flops),
        Column("hours", "hours charged", units.hours),
        Column("tokens_per_second", "tokens/s", units.count),
        Column("relative_speed", "relative speed", units.ratio),
        Column("overshoot", "overshoot", units.percent),
    ]
    note = "Mean over seeds. Tokens seen counts repeats; speed is tokens per charged second of the "
    note += f"whole job, relative to {results.reference}."
    return Table("spending", "", columns, rows, note)


def _spending_row(results: StudyResults, arm: str, reference: float | None) -> dict[str, Any]:
    runs = _runs(results, arm)
    means = {
        key: mean_over(runs, lambda run, key=key: getattr(run.summary, key))  # type: ignore[misc]
        for key in ("tokens", "unique_tokens", "steps", "flops", "hours", "tokens_per_second")
    }
    speed = means["tokens_per_second"]
    return {
        "arm": arm,
        "objective": of_arm_in_words(results.recipe, arm),
        **means,
        "relative_speed": speed / reference if speed and reference else None,
        "overshoot": mean_over(runs, _overshoot),
    }


def _overshoot(run: FinishedRun) -> float | None:
    """Beyond the budget, as a share of it; None of a calibrated run, whose steps were fixed before."""
    budget = run.summary.budget
    return budget.spent / budget.limit - 1 if budget.calibrated_steps is None else None


def ledger(results: StudyResults, unit: str) -> Table:
    """Per arm: where ``"seconds"`` or ``"flops"`` went, mean over seeds."""
    rows = [{"arm": arm, **activities(_runs(results, arm), unit)} for arm in results.arms]
    show = units.flops if unit == "flops" else lambda value: f"{value:.1f}"
    columns = [*texts("arm")]
    columns += [Column(name, activity_in_words(results, name), show) for name in ACTIVITIES]
    title = "Where the FLOPs went" if unit == "flops" else "Where the seconds went"
    charged = results.recipe.budget.charge
    note = f"Mean over seeds. Charged to the budget: {', '.join(charged)}. Other: validation, checkpoints, set-up, "
    note += "and filling a teacher cache for other students."
    return Table(f"ledger_{unit}", title, columns, rows, note)


def activity_in_words(results: StudyResults, activity: str) -> str:
    """One of `ACTIVITIES` as a heading; with "not charged" where nothing of it counts towards the budget."""
    accounts = {activity} if activity in ACCOUNTS else {*ACCOUNTS} - {*ACTIVITIES}
    name = {"data_wait": "waiting for data"}.get(activity, activity)
    return name if accounts & {*results.recipe.budget.charge} else f"{name}, not charged"


def activities(runs: list[FinishedRun], unit: str) -> dict[str, float]:
    """Mean over ``runs`` of each of `ACTIVITIES`, in ``unit``; ``other`` sums the remaining accounts."""
    spent = {name: mean_over(runs, lambda run, name=name: run.account(name, unit)) or 0.0 for name in ACCOUNTS}  # type: ignore[misc]
    named = {name: spent.pop(name) for name in ACTIVITIES if name in spent}
    return {**named, "other": sum(spent.values())}


def teacher_cost(results: StudyResults) -> Table | None:
    """Per arm: FLOPs of one student with the teacher's own training excluded, included, and shared by all students."""
    cost, source = break_even.teacher_flops(results)
    num_sharing = break_even.num_sharing(results)
    if not num_sharing:
        return None
    rows = []
    for arm in results.arms:
        runs = _runs(results, arm)
        own = mean_over(runs, lambda run: run.summary.flops)
        extra = cost if results.owes_the_teacher(arm) else 0.0
        rows.append(
            {
                "arm": arm,
                "excluded": own,
                "included": None if own is None or extra is None else own + extra,
                "amortised": None if own is None or extra is None else own + extra / num_sharing,
            }
        )
    columns = [
        *texts("arm"),
        *numbers(units.flops, excluded="excluded", included="included", amortised=f"shared by {num_sharing} students"),
    ]
    note = f"FLOPs per student. The teacher's own training: {units.flops(cost)} FLOPs ({source})."
    if beginning := [arm for arm in results.arms if results.begins_from_teacher(arm)]:
        note += f" Students whose first weights are the teacher's layers owe it too: {', '.join(beginning)}."
    return Table("teacher_cost", "", columns, rows, note)


def runs(results: StudyResults) -> Table:
    """Every single run: the raw material of all means."""
    rows = [_run_row(run) for run in results.all_runs()]
    columns = [
        *texts("arm"),
        *numbers(seed="seed", steps="steps"),
        Column("tokens", "tokens", units.count),
        Column("flops", "FLOPs", units.flops),
        Column("hours", "hours", units.hours),
        Column("probe_loss", "probe loss", units.thousandths),
        Column("score", "average score", units.points),
    ]
    return Table("runs", "", columns, rows)


def _run_row(run: FinishedRun) -> dict[str, Any]:
    spent = named(run.summary, "steps", "tokens", "unique_tokens", "flops", "hours", "tokens_per_second")
    row = {**named(run, "arm", "seed"), **spent, **named(run, "probe_loss", "score")}
    return row | {f"score_{task}": run.task_score(task) for task in run.tasks}


def fairness_checks(findings: list[Finding]) -> Table:
    """What the runs recorded, compared."""
    rows = [{"check": f.check, "result": "agrees" if f.passed else "DIFFERS", "detail": f.detail} for f in findings]
    return Table("fairness", "Fairness check", texts("check", "result", "detail"), rows)


def allowed_differences(differences: list[Difference], arms: list[str]) -> Table:
    """What the recipe lets arms differ in, beside the objective."""
    rows = [{"key": difference.key, **difference.values} for difference in differences]
    return Table("allowed_differences", "Allowed differences between arms", texts("key", *arms), rows)


def _runs(results: StudyResults, arm: str) -> list[FinishedRun]:
    return list(results.runs[arm].values())
