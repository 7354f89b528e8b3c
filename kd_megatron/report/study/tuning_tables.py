"""What a report says of what came before training: the trials of every arm, and the calibrated steps."""

from typing import Any

from rich.console import Console

from kd_megatron.analysis.results import StudyResults
from kd_megatron.console import units
from kd_megatron.console.logs import new_table
from kd_megatron.report.page.table import Column, Table, numbers, texts
from kd_megatron.study.effective import LEARNING_RATE, setting_in_words

TITLE = "What was tried before training"


def tuning(results: StudyResults) -> Table | None:
    """Every trial of every arm, the chosen ones marked; None where nothing was tuned."""
    found = results.tuning
    if found is None:
        return None
    rows = []
    for arm, trials in found["trials"].items():
        for trial in trials:
            option = next((path for path in trial["setting"] if path != LEARNING_RATE), None)
            rows.append(
                {
                    "arm": arm,
                    "trial": trial["trial"],
                    "learning_rate": trial["setting"][LEARNING_RATE],
                    "weight": option,
                    "weight_value": trial["setting"].get(option),
                    "probe_mlm_loss": trial["probe_mlm_loss"],
                    "tokens": trial["tokens"],
                    "outcome": _outcome(found, arm, trial),
                }
            )
            if "runs" in trial:
                losses = (units.thousandths(run["probe_mlm_loss"]) for run in trial["runs"])
                rows[-1]["losses_by_seed"] = ", ".join(losses)
    columns = [
        *texts("arm"),
        Column("trial", "trial"),
        Column("learning_rate", "learning rate", units.number),
        *texts("weight"),
        Column("weight_value", "its value", units.number),
        Column("probe_mlm_loss", "held-out loss (probe), nats", units.thousandths),
        *(texts(losses_by_seed="by seed") if found.get("num_seeds", 1) > 1 else []),
        Column("tokens", "tokens seen", units.count),
        *texts("outcome"),
    ]
    return Table("tuning", TITLE, columns, rows, _note(found))


def _outcome(found: dict[str, Any], arm: str, trial: dict[str, Any]) -> str:
    said = [f"beyond an edge, round {trial['round']}"] if trial.get("round") else []
    if not trial["is_finite"]:
        said.append("not finite: counts as the worst")
    elif trial["setting"] == found["chosen"][arm]:
        said.append("chosen")
    return "; ".join(said)


def _note(found: dict[str, Any]) -> str:
    budget, num_seeds = found["budget"], found.get("num_seeds", 1)
    paid = "taken off the arm's budget" if found["charged"] else "not charged to the arm's budget"
    seeds, of = f"seed {found['seed']}", ""
    if num_seeds > 1:
        seeds, of = f"seeds {found['seed']} to {found['seed'] + num_seeds - 1}", f", mean over {num_seeds} seeds,"
    return (
        f"{found['num_trials']} trials for every arm, {budget['limit']:g} {budget['unit'].replace('_', ' ')} each, "
        f"{seeds}; {paid}. The lowest held-out loss{of} is chosen."
    )


def show(results: StudyResults) -> None:
    """Print the trials, narrow enough for a terminal."""
    found = results.tuning
    if found is None:
        return
    shown = new_table(TITLE)
    for heading in ("arm", "setting"):
        shown.add_column(heading)
    shown.add_column("held-out loss", justify="right", no_wrap=True)
    shown.add_column("outcome")
    for arm, trials in found["trials"].items():
        for trial in trials:
            loss, outcome = units.thousandths(trial["probe_mlm_loss"]), _outcome(found, arm, trial)
            shown.add_row(arm, setting_in_words(trial["setting"]), loss, outcome)
    console = Console(soft_wrap=False)
    console.print(shown)
    console.print(_note(found), style="dim")


def tuning_caveats(results: StudyResults) -> list[str]:
    """What was given up, where a better value may lie beyond those tried, and what the choice was made on."""
    found = results.tuning
    if found is None:
        return []
    said = [
        f"Before training every arm had {found['num_trials']} trials at {found['budget']['limit']:g} "
        f"{found['budget']['unit'].replace('_', ' ')} each; the setting with the lowest held-out loss was kept. "
        + (
            "It was measured on held-out windows of its own, which no reported loss is of."
            if found.get("on_windows_of_its_own")
            else "It was measured on the split whose loss is reported: losses of tuned arms are slightly optimistic, "
            "alike for all."
        )
    ]
    tried = results.recipe.tuning.weights if results.recipe.tuning else {}
    distilling = [arm for arm in results.recipe.arms if results.learns_from_teacher(arm)]
    if untried := [arm for arm in distilling if arm not in tried]:
        said.append(f"Learning rates were tried, weights of the objective were not, in {', '.join(untried)}.")
    said += _extensions(found)
    edges = {arm: paths for arm, paths in found["at_edge"].items() if paths}
    if edges:
        listed = "; ".join(
            f"{arm} {setting_in_words({path: found['chosen'][arm][path] for path in paths})}"
            for arm, paths in edges.items()
        )
        said.append(f"The best value is at the edge of those tried, and a better one may lie beyond: {listed}.")
    given_up = {arm: found["num_trials"] - len(rows) for arm, rows in found["trials"].items()}
    if any(given_up.values()):
        listed = ", ".join(f"{arm} {number}" for arm, number in given_up.items() if number)
        said.append(f"Trials that were given up: {listed} of {found['num_trials']}.")
    if found["charged"]:
        spent = ", ".join(f"{arm} {amount:.4g}" for arm, amount in found["charged"].items())
        said.append(f"What the trials spent is taken off each arm's budget ({found['budget']['unit']}): {spent}.")
    return said


def _extensions(found: dict[str, Any]) -> list[str]:
    """Where best values lay at an edge, and what every arm was therefore given."""
    rounds = found.get("extensions") or []
    if not rounds:
        return []
    listed = "; then ".join(
        ", ".join(f"{end['which'].replace('_', ' ')} {end['side']} ({', '.join(end['arms'])})" for end in one)
        for one in rounds
    )
    extra = sum(map(len, rounds))
    return [
        f"Best values lay at an edge of those tried, so that every arm was given {units.counted(extra, 'trial')} more, "
        f"one beyond each edge: {listed}."
    ]


def calibration(results: StudyResults) -> Table | None:
    """Per arm: its speed before training and the steps it fixed; None where nothing was calibrated."""
    found = results.calibration
    if found is None:
        return None
    rows = []
    for arm, entry in found["arms"].items():
        runs = list(results.runs.get(arm, {}).values())
        hours = [run.summary.hours for run in runs]
        rows.append(
            {
                "arm": arm,
                **{key: entry["tokens_per_second"][key] for key in ("p50", "p20", "p80")},
                "steps": next((run.summary.budget.calibrated_steps for run in runs), None),
                "least_hours": min(hours, default=None),
                "most_hours": max(hours, default=None),
            }
        )
    columns = [
        *texts("arm"),
        *numbers(units.count, p50="tokens/s", p20="p20", p80="p80"),
        Column("steps", "steps fixed", units.plain),
        *numbers(units.hours, least_hours="hours taken, least", most_hours="most"),
    ]
    note = (
        f"Measured before training in {found['rounds']} rounds of {found['steps']} steps, arms in turn, on "
        f"{found['hardware']['device']}. Hours are those that the charged accounts took."
    )
    return Table("calibration", "How the budget in time became steps", columns, rows, note)


def calibration_caveats(results: StudyResults) -> list[str]:
    """That steps were fixed before training, and how far the clock then was from the budget."""
    found = results.calibration
    if found is None:
        return []
    budget = results.recipe.budget
    said = (
        f"The budget of {budget.limit:g} {budget.unit.replace('_', ' ')} became steps before training, by each arm's "
        f"median speed in {found['rounds']} rounds in turn on {found['hardware']['device']}: the clock ended no run"
    )
    shares = [run.summary.budget.spent / run.summary.budget.limit for run in results.all_runs()]
    if shares:
        said += f". By the clock the runs took {min(shares):.0%} to {max(shares):.0%} of it"
    scaled = [arm for arm, entry in found["arms"].items() if "scaled_by" in entry]
    if scaled:
        said += f"; {', '.join(scaled)} came later and was brought to the speed of that day by the other arms'"
    return [f"{said}."]
