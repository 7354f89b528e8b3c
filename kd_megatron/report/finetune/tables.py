"""Tables of the fine-tuning page: scores with intervals, the metrics behind them, grid, published scores, machines."""

from typing import Any

from kd_megatron.analysis.statistics import Estimate, estimate
from kd_megatron.console import units
from kd_megatron.recipe import TaskRecipe
from kd_megatron.recipe.diff import flatten
from kd_megatron.report.finetune.results import FinetuneResults, OthersScores
from kd_megatron.report.page import words
from kd_megatron.report.page.table import Column, Table, named, numbers, texts


def heading(results: FinetuneResults, task: str) -> str:
    """The task's name, starred when there is something to know of its rows."""
    return task + ("*" if results.tasks[task].note else "")


def scores(results: FinetuneResults) -> Table:
    """Per task: its score, and what it was read from."""
    rows: list[dict[str, Any]] = []
    for task, part in results.tasks.items():
        of_cells = dict(zip(("learning_rate", "batch_size"), results.best(task), strict=True))
        row = {"task": heading(results, task), **named(part, "metric", "num_train", "num_dev"), **of_cells}
        row |= {"num_runs": part.num_runs, "n": len(part.scores), "score": estimate(list(part.scores.values()))}
        if part.majority_score is not None:
            row |= {"majority_score": part.majority_score, "collapsed": f"{part.num_collapsed} of {len(part.scores)}"}
        rows.append(row | named(part, "partial_split", "note"))
    rows.append({"task": "average", "metric": "plain mean over these tasks", "score": results.average()})
    columns = [
        *texts("task", "metric"),
        *numbers(num_train="train", num_dev="dev"),
        Column("learning_rate", "learning rate", units.number),
        *numbers(batch_size="batch", num_runs="runs", n="seeds"),
        Column("score", "score", words.score),
        Column("score", "95 % interval", interval),
    ]
    if any(part.majority_score is not None for part in results.tasks.values()):
        columns += [*numbers(units.points, majority_score="majority class"), *texts("collapsed")]
    return Table("scores", "", columns, rows, _note_of_scores(results))


def _note_of_scores(results: FinetuneResults) -> str:
    note = "Points of 100. Mean over seeds ± half of Student's 95 % interval. "
    note += f"Each score is that of the {results.summary.selection}."
    if any(part.num_collapsed for part in results.tasks.values()):
        note += " Collapsed: every dev row has one answer, or the score is that of the majority class."
    stars = [f"{task}: {part.note}" for task, part in results.tasks.items() if part.note]
    return note + (f" * {'; '.join(stars)}." if stars else "")


def interval(value: Estimate | None) -> str:
    """``"70.1 to 72.3"`` in points; a dash for one seed."""
    if value is None or value.low is None or value.high is None:
        return units.NOTHING
    return units.signless(f"{100 * value.low:.1f} to {100 * value.high:.1f}")


def averages(results: FinetuneResults) -> Table | None:
    """The averages that others take; one over fewer tasks than its own would be another number, so it is not shown."""
    found = [part for part in results.summary.averages.values() if part["tasks"]]
    if not found:
        return None
    rows = [
        {
            "average": part["title"],
            "value": estimate(list(part["scores"].values())),
            "absent": ", ".join(part["absent"]),
            "partial": ", ".join(part["partial"]),
        }
        for part in found
    ]
    columns = [
        *texts("average"),
        Column("value", "points", words.score),
        Column("absent", "tasks it lacks", _or_dash, is_text=True),
        Column("partial", "not on GLUE's rows", _or_dash, is_text=True),
    ]
    return Table("averages", "", columns, rows)


def _or_dash(value: str) -> str:
    return value or units.NOTHING


def metrics(results: FinetuneResults) -> Table:
    """Every metric of the best setting: what a mean of two is made of, and MNLI's second dev set."""
    rows = []
    for task in results.tasks:
        cells = results.best_cells(task)
        for name in cells[0]["metrics"]:
            values = [float(cell["metrics"][name]) for cell in cells]
            rows.append({"task": heading(results, task), "metric": name, "value": estimate(values)})
    columns = [*texts("task", "metric"), Column("value", "mean", words.score)]
    return Table("metrics", "", columns, rows, "Points of 100, mean over seeds ± half of the 95 % interval.")


def grid(results: FinetuneResults) -> Table | None:
    """Per task and setting: the mean over the seeds it ran with. None when no task had a choice."""
    rows = [
        {
            "task": heading(results, task),
            "learning_rate": setting[0],
            "batch_size": setting[1],
            "n": value.n if (value := results.scores(task, setting)) else 0,
            "score": value,
            "chosen": "yes" if setting == results.best(task) else "",
        }
        for task in results.tasks
        for setting in results.settings(task)
    ]
    if len(rows) == len(results.tasks):
        return None
    columns = [
        *texts("task"),
        Column("learning_rate", "learning rate", units.number),
        *numbers(batch_size="batch", n="seeds"),
        Column("score", "score", words.score),
        *texts("chosen"),
    ]
    return Table("grid", "", columns, rows)


def cells(results: FinetuneResults) -> Table:
    """Every cell, for the csv: settings, score, metrics, speed."""
    settings = ("learning_rate", "batch_size", "seed", "used_seed")
    keys = (*settings, "score", "selection_score", "collapsed", "num_steps", "num_examples")
    timings = ("examples_per_second", "train_seconds", "dev_seconds")
    rows: list[dict[str, Any]] = []
    for task, contents in results.cells.items():
        for cell in contents:
            row = {"task": task, **{key: cell[key] for key in (*keys, *timings) if key in cell}}
            rows.append(row | {f"metric_{name}": value for name, value in cell["metrics"].items()})
    return Table("cells", "", [*texts("task")], rows)


def published(results: FinetuneResults, others: OthersScores) -> Table:
    """This model beside what others report, and the differences."""
    mine = {task: 100 * part.mean for task, part in results.tasks.items()}
    rows: list[dict[str, Any]] = [{"model": f"{results.model} (this page)", **mine, "source": "the table above"}]
    for row in others.rows:
        rows.append({"model": row["model"], **row["scores"], "source": row["source"]})
        shared = [task for task in mine if task in row["scores"]]
        if shared:
            rows.append({"model": "this page minus it", **{task: mine[task] - row["scores"][task] for task in shared}})

    columns = [*texts("model")]
    columns += [Column(task, heading(results, task), _points_as_given) for task in results.tasks]
    return Table("published", "", [*columns, *texts("source")], rows, "Points of 100.")


def _points_as_given(value: float | None) -> str:
    return units.NOTHING if value is None else units.signless(f"{value:.1f}")


def settings(results: FinetuneResults) -> Table | None:
    """The resolved recipe: everything the scores depend on beside model and data."""
    found = results.summary.settings
    if not found:
        return None
    tasks = {task["name"]: TaskRecipe.model_validate(task).model_dump(exclude_defaults=True) for task in found["tasks"]}
    named = {
        name: {key: task[key] for key in task if key != "name"} or "as GLUE has it" for name, task in tasks.items()
    }
    rows = [{"key": key, "value": value} for key, value in flatten({**found, "tasks": named}).items()]
    return Table("settings", "", _two_columns("setting"), rows)


def machines(results: FinetuneResults) -> list[Table]:
    """Commit, versions and hardware, for each set of them that cells were run with."""
    found = []
    for number, machine in enumerate(results.machines, start=1):
        rows = [{"key": key, "value": value} for key, value in flatten(machine).items()]
        found.append(Table(f"machine_{number}", "", _two_columns("entry"), rows))
    return found


def _two_columns(name: str) -> list[Column]:
    return [Column("key", name, is_text=True), *texts("value")]
