"""The published study beside this one: the same rows, and what differs. Its numbers are in ``published.json``."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from kd_megatron.analysis.results import StudyResults
from kd_megatron.console import units
from kd_megatron.console.units import budget_in_words, num_seeds
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.arms import split_arm
from kd_megatron.report.page import words
from kd_megatron.report.page.document import Block, Bullets, Details, TableBlock
from kd_megatron.report.page.table import Column, Table, texts
from kd_megatron.report.study.tables import mean_over

FILE = Path(__file__).with_suffix(".json")


@cache
def _read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


REFERENCE = next(name for name, theirs in _read()["names"].items() if theirs == "No-KD")


def setting(study: StudyResults) -> dict[str, Any]:
    """Of the settings that were published, the nearest one: limited data as here, else the nearest number of layers."""
    limited = study.recipe.data.unique_tokens is not None
    layers = study.recipe.student.num_layers
    alike = [one for one in _read()["settings"] if one["limited"] == limited]
    return min(alike, key=lambda one: abs(one["num_layers"] - layers))


def beside(study: StudyResults) -> list[Block]:
    """The two tables, and what the study's code computes otherwise; empty where no arm but the reference is in it."""
    table = rows(study)
    if table is None:
        return []
    said = [*_read()["code"], _read()["remark"]]
    return [
        TableBlock(replace(table, title="")),
        TableBlock(setup(study)),
        Details("What its code computes otherwise", [Bullets(said)]),
    ]


def objective_of(study: StudyResults, arm: str) -> str:
    """The name of an arm's objective."""
    return str(split_arm(study.recipe.arms[arm])[0].get("objective", arm))


def rows(study: StudyResults) -> Table | None:
    """Per arm: tokens, tokens relative to the reference, and the difference in the average; theirs and ours."""
    found, theirs = setting(study), setting(study)["rows"]
    arms = [arm for arm in study.arms if objective_of(study, arm) in theirs]
    if objective_of(study, study.reference) != REFERENCE or set(arms) <= {study.reference}:
        return None
    tokens = {arm: mean_over(list(study.runs[arm].values()), lambda run: run.summary.tokens) for arm in arms}
    base = tokens.get(study.reference)
    shown = []
    for arm in arms:
        one = theirs[objective_of(study, arm)]
        mine = tokens[arm]
        shown.append(
            {
                "arm": arm,
                "published_name": _read()["names"][objective_of(study, arm)],
                "published_tokens": one["tokens"],
                "published_ratio": one["tokens"] / theirs[REFERENCE]["tokens"],
                "published_difference": _said(one),
                "tokens": mine,
                "ratio": mine / base if mine and base else None,
                "difference": study.difference(arm, "score"),
            }
        )
    columns = [
        *texts("arm", published_name="its name there"),
        Column("published_tokens", "their tokens", units.count),
        Column("published_ratio", "to No-KD's", units.ratio),
        Column("published_difference", "their GLUE to No-KD", is_text=True),
        Column("tokens", "our tokens", units.count),
        Column("ratio", f"to {study.reference}'s", units.ratio),
        Column("difference", f"our average to {study.reference}", words.score_difference),
    ]
    note = (
        f"Theirs: {found['name']}; {_read()['source']}. Differences of averages in points; theirs are of one "
        "seed, without an interval. Tokens of equal hours there, of an equal budget here."
    )
    return Table("published", "The published study beside this one", columns, shown, note)


def _said(row: dict[str, Any]) -> str:
    if "difference" in row:
        return units.signed(row["difference"], 1)
    return f"{row['said']} (number not known to us)" if "said" in row else units.NOTHING


def setup(study: StudyResults) -> Table:
    """What is not the same here and there; rows that agree are left out."""
    theirs = {**setting(study)["setup"], **_read()["setup"]}
    ours = _ours(study)
    differing = [
        {"what": what, "theirs": theirs[what], "ours": ours[what]} for what in theirs if theirs[what] != ours[what]
    ]
    return Table("published_setup", "What differs", texts(what="", theirs="there", ours="here"), differing)


def _ours(study: StudyResults) -> dict[str, str]:
    recipe = study.recipe
    student, data = recipe.student, recipe.data
    fixed = "static" if data.mask_seed is not None else "dynamic"
    dropouts = sorted({student.hidden_dropout, student.attention_dropout})
    return {
        "student": f"{student.num_layers} layers x {student.hidden_size}",
        "teacher": _teacher(study),
        "budget": budget_in_words(recipe.budget),
        "text": ", ".join(Path(shards.path).name for shards in data.shards)
        + (f", {units.count(data.unique_tokens)} tokens of it" if data.unique_tokens else ""),
        "first weights": by_arm(study, first_weights),
        "sequence length": f"{data.sequence_length}, packed",
        "masks": f"{fixed}, {100 * data.mask_fraction:g} %",
        "batch": by_arm(study, lambda arm: f"{arm.training.global_batch_size} sequences"),
        "learning rate": _rates(study),
        "warm-up": by_arm(study, lambda arm: f"{100 * arm.training.warmup_fraction:g} %"),
        "schedule": by_arm(study, lambda arm: f"{arm.training.schedule} in the share of the budget spent"),
        "precision": by_arm(study, lambda arm: arm.training.precision),
        "dropout": f"{' and '.join(f'{value:g}' for value in dropouts)}; {_teacher_dropout(recipe)}",
        "pretraining seeds": str(len(recipe.seeds)),
        "tasks": ", ".join(study.tasks) or "none",
        "fine-tuning": _finetuning(study),
    }


def first_weights(recipe: StudyRecipe) -> str:
    """``"random"``, ``"teacher layers"``, ``"layers 2, 4, 6 of org/model"``."""
    chosen = recipe.student.initialise
    if chosen.method != "checkpoint":
        return chosen.method.replace("_", " ")
    which = f"layers {', '.join(map(str, chosen.layers))}" if chosen.layers else "those"
    return f"{which} of {chosen.path}"


def _teacher(study: StudyResults) -> str:
    recipe = study.recipe.teacher
    if recipe is None:
        return "none"
    if recipe.train:
        return f"{recipe.train.encoder.num_layers} layers x {recipe.train.encoder.hidden_size}, trained by this study"
    return Path(recipe.path or "").name


def _teacher_dropout(recipe: StudyRecipe) -> str:
    """In which arms the teacher drops out: those as coded (`objectives.as_coded`), wherever an arm says so."""
    coded = [arm for arm, options in recipe.arms.items() if _is_as_coded(options)]
    return f"active in the teacher of {', '.join(coded)}, none in others'" if coded else "none in the teacher"


def _is_as_coded(options: Any) -> bool:
    if isinstance(options, dict):
        return options.get("as_coded") is True or any(map(_is_as_coded, options.values()))
    return isinstance(options, list) and any(map(_is_as_coded, options))


def _rates(study: StudyResults) -> str:
    said = by_arm(study, lambda arm: f"{arm.training.learning_rate:g}")
    return said if said.endswith(")") else f"{said} in all arms"


def by_arm(study: StudyResults, read: Callable[[StudyRecipe], str]) -> str:
    """What ``read`` finds in the recipes that arms really run, tuning and overrides included, in words."""
    return units.by_arm({arm: read(recipe) for arm, recipe in study.resolved.items()})


def _finetuning(study: StudyResults) -> str:
    recipe = study.recipe.finetune
    if recipe is None:
        return "none"
    rates = " or ".join(f"{rate:g}" for rate in recipe.grid.learning_rates)
    batches = " or ".join(map(str, recipe.grid.batch_sizes))
    seeds = num_seeds(len(recipe.seeds))
    selected = "" if recipe.grid.num_settings == 1 else f", selected on {recipe.selection.on.replace('_', ' ')}"
    return f"{recipe.epochs:g} epochs, learning rate {rates}, batch {batches}, {seeds}{selected}"
