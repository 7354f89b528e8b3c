"""One run from start to summary: claim the directory, train (or resume), validate, export, sum up."""

import functools
import gc
import json
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_megatron.console.logs import quiet_libraries, say
from kd_megatron.engine.batch_split import smaller_than_asked
from kd_megatron.errors import OutputError, disk_full_is_clear
from kd_megatron.files import hub, locks
from kd_megatron.files.manifest import model_hash
from kd_megatron.files.records import write_json, write_text
from kd_megatron.models.export import export
from kd_megatron.objectives import registry
from kd_megatron.objectives.of_the_teacher import owes_the_teacher
from kd_megatron.objectives.words import in_words
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import ControlsRecipe, StudyRecipe, diff, recipe_yaml
from kd_megatron.recipe.paths import refuse_file_or_links_out
from kd_megatron.training.cached_teacher import CachedTeacher
from kd_megatron.training.fingerprint import FINGERPRINT, fingerprint, going_on
from kd_megatron.training.loop import train, validate
from kd_megatron.training.schedule import Branch
from kd_megatron.training.setup import Run, prepare_run

RECIPE, SUMMARY, LEDGER = "recipe.yaml", "summary.json", "ledger.json"
TEACHER_ARM = "teacher"


def pretrain(
    study: StudyRecipe, arm: str, seed: int, directory: Path, teacher_path: str | None, branch: Branch | None = None
) -> dict[str, Any]:
    """Train ``arm`` at ``seed`` and return its summary; at once when it was finished before. Collective.

    Args:
        study: with the arm's own overrides already applied.
        directory: of this run alone; a directory of another run is refused.
        teacher_path: the teacher's directory or hub id, None when the arm has none.
        branch: where this run leaves another one of the same ``study``, ``arm`` and ``seed``; None: it begins itself.
    """
    quiet_libraries()
    dist.initialise()
    claim_run(study, arm, seed, directory, branch)
    if finished := dist.from_main(read_summary(directory)):
        return finished  # without the lock: those that find it finished need not take turns
    with locks.alone(directory, "training in"):
        stages.stacks_to(directory)
        finished = dist.from_main(read_summary(directory))
        return finished or _pretrain_alone(study, arm, seed, directory, teacher_path, branch)


def _pretrain_alone(
    study: StudyRecipe, arm: str, seed: int, directory: Path, teacher_path: str | None, branch: Branch | None
) -> dict[str, Any]:
    """`pretrain` of a run that is not finished, in a directory that no other process writes to."""
    if teacher_path is not None and study.teacher is not None and study.teacher.path is not None:
        teacher_path = hub.directory_on_all_ranks(teacher_path, study.teacher.revision, "teacher")
    if note := smaller_than_asked(study.training, dist.world_size()):
        say(note)
    while True:  # once for each phase
        run = prepare_run(study, arm, seed, directory, teacher_path, branch)
        try:
            facts = fingerprint(run.loader, teacher_path, run.begins_from)
            if run.ledger.steps > 0:
                facts = dist.on_main(functools.partial(going_on, study, arm, _began_in(directory, branch), facts))
            if dist.is_main():
                write_json(directory / FINGERPRINT, facts)
            train(run)
            if run.phase_until >= run.until:
                with stages.stage("export"):
                    return _finish(run, teacher_path, facts)
        finally:
            run.close()
            del run
            gc.collect()


def _began_in(directory: Path, branch: Branch | None) -> Path:
    """Where the first steps of a run left their fingerprint: of a branch that has just left, in the other run."""
    if branch is None or (directory / FINGERPRINT).is_file():
        return directory
    return branch.checkpoint.parents[1]


def train_teacher(study: StudyRecipe, directory: Path) -> dict[str, Any]:
    """Train the study's own teacher by the scratch objective, on the study's data, and return its summary."""
    as_study = teacher_study(study)
    return pretrain(as_study, TEACHER_ARM, as_study.seeds[0], directory, teacher_path=None)


def refuse_other_teacher(study: StudyRecipe, directory: Path) -> None:
    """Raise `OutputError` where the finished teacher in ``directory`` is not the one that ``study`` asks for.

    Of its recipe, what was validated and logged on the way decides no weight.
    """
    as_study = teacher_study(study)
    wanted = {"run": {"arm": TEACHER_ARM, "seed": as_study.seeds[0]}, **as_study.model_dump(mode="json")}
    found = diff.changes(StudyRecipe, _recorded(directory / RECIPE), wanted, but="teacher")
    if differing := sorted(change.key for change in found):
        raise OutputError(
            given=f"{directory} holds a teacher of another recipe; these keys differ: {', '.join(differing)}",
            expected="the teacher that this recipe trains",
            fix="give the recipe another name (name=...), or remove that teacher: it is then trained anew",
        )


def teacher_study(study: StudyRecipe) -> StudyRecipe:
    """The study whose one run is the teacher's."""
    assert study.teacher is not None
    recipe = study.teacher.train
    assert recipe is not None
    rate = recipe.learning_rate or study.training.learning_rate
    return study.model_copy(
        update={
            "student": recipe.encoder,
            "teacher": None,
            "arms": {TEACHER_ARM: registry.ALONE},
            "budget": recipe.budget,
            "seeds": [recipe.seed],
            "training": study.training.model_copy(update={"learning_rate": rate}),
            "finetune": None,
            "markers": None,
            "grid": None,
            "controls": ControlsRecipe(),
            "allow_difference": [],
        }
    )


def read_summary(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None while there is none."""
    path = directory / SUMMARY
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("status") == "finished" else None


def claim_run(study: StudyRecipe, arm: str, seed: int, directory: Path, branch: Branch | None = None) -> None:
    """Make ``directory`` this run's own. Raises `OutputError` when it holds anything else."""
    refuse_file_or_links_out(directory)
    whose: dict[str, Any] = {"arm": arm, "seed": seed}
    if branch is not None:
        whose["branch"] = {"left_at": branch.start, "ends_at": branch.end}
    resolved = {"run": whose, **study.model_dump(mode="json")}
    if problem := dist.on_main(lambda: _problem(resolved, directory, owes_the_teacher(study, arm))):
        raise OutputError(
            given=f"output directory {directory} {problem}",
            expected="an empty directory, or one that holds this very run (which is then resumed)",
            fix="choose another directory, or remove this one",
        )


def _problem(resolved: dict[str, Any], directory: Path, owes_the_teacher: bool) -> str | None:
    """Write the ``resolved`` recipe into an empty ``directory``; what is wrong with it otherwise.

    A run that owes the teacher nothing is the same with another one.
    """
    path = directory / RECIPE
    if path.is_file():
        found = diff.changes(StudyRecipe, _recorded(path), resolved)
        counting = [change for change in found if owes_the_teacher or not change.policy.makes_stale("taught")]
        moved = {change.key for change in counting if "resume" in change.policy.free}
        if moved:
            say(f"{directory} was begun with other values of {', '.join(sorted(moved))}; {RECIPE} keeps those")
        differing = {change.key for change in counting} - moved
        return f"holds another run; these keys differ: {', '.join(sorted(differing))}" if differing else None
    if directory.exists() and any(directory.iterdir()):
        return "holds files that are not a run's"
    with disk_full_is_clear(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, recipe_yaml.dump(resolved))
    return None


def _recorded(path: Path) -> Any:
    """The recipe at ``path``, with the keys that this version added since it was written."""
    found = recipe_yaml.read(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        return found
    run = found.pop("run", None)
    return {"run": run, **diff.with_defaults(StudyRecipe, found)}


def _finish(run: Run, teacher_path: str | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Validate at the end of the budget, export, and write ledger and summary (last: it says that all is there)."""
    scores = validate(run, fraction=run.until)
    assert scores is not None  # nothing cuts this one short: a stop here ends the process, and the budget is spent
    weights = {
        name.removeprefix("student.model."): weight
        for name, weight in run.engine.full_weights().items()
        if name.startswith("student.model.")
    }
    summary = summarise(run, teacher_path, scores, facts)
    summary["export_hash"] = dist.on_main(lambda: _export(run, weights, summary))
    if dist.is_main():
        with disk_full_is_clear(run.directory):
            write_json(run.directory / LEDGER, run.ledger.to_dict())
            write_json(run.directory / SUMMARY, summary)
    dist.barrier()
    loss = scores["probe_mlm_loss"]
    say(f"{run.arm} seed {run.seed}: {run.ledger.tokens:,} tokens, held-out MLM loss {loss:.3f} nats (probe)")
    return summary


def _export(run: Run, weights: dict[str, Tensor], summary: dict[str, Any]) -> str:
    """Write the student with its card; the hash of what was written, which fine-tuning records as well."""
    of_the_budget = "" if run.branch is None else f", {100 * run.until:g} % of the budget"
    card = {key: summary[key] for key in ("objective", "seed", "tokens", "flops", "untrained_parameters")}
    card |= {
        "name": f"{run.study.name}: {run.arm}, seed {run.seed}{of_the_budget}",
        "objective_in_words": in_words(run.study.arms[run.arm]),
        "budget": f"{run.until * run.study.budget.limit:g} {run.study.budget.unit}",
        "data": ", ".join(shards.path for shards in run.study.data.shards),
    }
    where = run.directory / "export"
    export(run.module.student.model, weights, run.loader.tokenizer_path, where, card)
    return model_hash(where)


def summarise(run: Run, teacher_path: str | None, scores: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The summary of a finished run, as plain data."""
    budget, ledger = run.study.budget, run.ledger
    length, branch = run.study.data.sequence_length, None
    if run.branch is not None:  # where it left another run, and whether its learning rate came down on the way
        steps = ledger.steps - run.branch.step
        branch = {"fraction": run.branch.end, "left_at": run.branch.start, "decay_steps": steps, "decayed": steps > 0}
    return {
        "status": "finished",
        "arm": run.arm,
        "objective": run.study.arms[run.arm]["objective"],
        "seed": run.seed,
        "steps": ledger.steps,
        "tokens": ledger.tokens,
        "unique_tokens": ledger.unique_tokens,
        "parameters": run.num_parameters,
        "budget": {
            "unit": budget.unit,
            "limit": run.until * budget.limit,
            "spent": ledger.spent(budget),
            "overshoot": ledger.overshoot,
            "charge": list(budget.charge),
            "calibrated": budget.calibrated.model_dump() if budget.calibrated else None,
        },
        "hours": run.charged_seconds() / 3600.0,
        "flops": ledger.flops(*budget.charge),
        "tokens_per_second": ledger.tokens / max(run.charged_seconds(), 1e-9),
        "ledger": ledger.to_dict(),
        "validation": {"mlm_loss": None, "mlm_accuracy": None, **scores},
        "untrained_parameters": [name.removeprefix("student.model.") for name in run.place.never_trained or []],
        "export": "export",
        "teacher": _teacher_facts(run, teacher_path),
        "flops_per_token": {name: flops / length for name, flops in asdict(run.mean_cost).items()},
        "memory": _memory(run),
        "fingerprint": facts,
        "branch": branch,
        "settings": settings(run.study),
    }


def settings(study: StudyRecipe) -> dict[str, Any]:
    """What the run was given, as a recipe has it, without what a resume may change; the report checks it."""
    others = (name for name in StudyRecipe.model_fields if not diff.policy_of(StudyRecipe, name).of_run)
    return study.model_dump(mode="json", exclude=diff.left_out(StudyRecipe, "resume") | dict.fromkeys(others, True))


def _memory(run: Run) -> dict[str, int | None]:
    """The largest of all ranks (of earlier phases, rank 0's), in bytes: see `machine.memory`. Collective."""
    peaks = dist.gather(run.place.most_bytes(run.meter.peak_bytes))
    training = [peak for peak in peaks if peak is not None]
    resident = max(dist.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    return {"training_bytes": max(training, default=None), "resident_bytes": resident}


def _teacher_facts(run: Run, path: str | None) -> dict[str, Any] | None:
    """What is known of the teacher's size and cost; None when the objective uses none."""
    teacher, recipe = run.step.teacher, run.study.teacher
    if run.place.teacher_parameters == 0 or recipe is None or path is None:
        return None
    own = read_summary(Path(path).parent) if recipe.train is not None else None
    return {
        "path": hub.source_of(path) or recipe.path or path,
        "parameters": run.place.teacher_parameters,
        "cost_flops": own["flops"] if own else recipe.cost_flops,
        "cost_source": "this study's ledger" if own else recipe.cost_source,
        "cache": teacher.facts() if isinstance(teacher, CachedTeacher) else None,
        "float8_errors": asdict(teacher.float8_errors) if teacher is not None and teacher.float8_errors else None,
    }
