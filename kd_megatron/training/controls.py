"""The rows that a study's arms are seen next to: its first weights without a step, and its teacher.

Both are measured by the validation of students: the same held-out windows, the same probe. Neither needs an engine: no
weight changes, and every process holds the model whole, but for a teacher in pieces.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kd_megatron.console.logs import quiet_libraries, say
from kd_megatron.data.loader import Loader
from kd_megatron.engine.partition import PartitionedModel
from kd_megatron.errors import disk_full_is_clear
from kd_megatron.files import hub, locks
from kd_megatron.files.manifest import model_hash
from kd_megatron.files.records import write_json
from kd_megatron.models.build import DTYPES, build_student, check_same_vocabulary, load_with_missing
from kd_megatron.models.export import export
from kd_megatron.models.initialise import initialise
from kd_megatron.models.taps import TappedEncoder
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import StudyRecipe
from kd_megatron.recipe.controls import TEACHER, UNTRAINED
from kd_megatron.tensors import Needs
from kd_megatron.training.fingerprint import fingerprint
from kd_megatron.training.probe import FirstHead
from kd_megatron.training.run import SUMMARY
from kd_megatron.training.setup import execution, special_ids
from kd_megatron.training.validate import Validation

NOTHING = Needs()  # of a model that validation alone reads, which asks for what it needs itself


def measure_untrained(
    study: StudyRecipe, directory: Path, teacher_path: str | None, made_of: dict[str, Any]
) -> dict[str, Any]:
    """Export and validate the first weights of the study's first seed, and return the summary. Collective.

    The MLM head is measured as it is before the first step: random, unless first weights come with one.

    Args:
        study: as it is before any arm's overrides.
        directory: of this control alone.
        teacher_path: whose layers the first weights may be.
        made_of: what the result hangs on, kept in its summary.
    """
    with _alone_in(directory) as device:
        seed = study.seeds[0]
        loader = Loader(study.data, seed)
        model = build_student(study.student, loader.vocab_size, special_ids(loader), seed)
        begins_from = initialise(model, study.student.initialise, teacher_path)
        facts = fingerprint(loader, teacher_path, begins_from)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        hashed = dist.on_main(functools.partial(_export, study, model, loader.tokenizer_path, directory / "export"))
        dtype = torch.bfloat16 if study.training.precision == "bf16" else torch.float32
        encoder = TappedEncoder(model, NOTHING, execution=execution(study)).to(device, dtype)
        scores = _validate(study, encoder, device, True, FirstHead.of(model))
        found = {"seed": seed, "parameters": num_parameters, "export": "export", "export_hash": hashed}
        return _finish(UNTRAINED, directory, found, scores, facts, made_of)


def measure_teacher(study: StudyRecipe, directory: Path, path: str, made_of: dict[str, Any]) -> dict[str, Any]:
    """Validate the teacher in ``path``, by the probe and by its own head where it has one. Collective.

    Raises:
        ModelError: it is not there, cannot be loaded, or has another vocabulary than the shards.
    """
    assert study.teacher is not None
    with _alone_in(directory) as device:
        loader = Loader(study.data, study.seeds[0])
        check_same_vocabulary(path, loader.tokenizer_sha256, ", ".join(s.path for s in study.data.shards))
        model, missing = load_with_missing(path, DTYPES[study.teacher.precision])
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        start = FirstHead.of(model)  # while all of it is here
        encoder = TappedEncoder(model, NOTHING, execution=execution(study)).eval().requires_grad_(False)
        pieces = PartitionedModel(encoder.model) if study.teacher.partition else None
        if pieces is None:
            encoder.to(device)
        try:
            scores = _validate(study, encoder, device, not missing, start, pieces)
        finally:
            if pieces is not None:
                pieces.close()
        found = {"parameters": num_parameters, "path": hub.source_of(path) or study.teacher.path or path}
        found |= {"export_hash": dist.on_main(lambda: model_hash(Path(path)))}
        return _finish(TEACHER, directory, found, scores, fingerprint(loader, path, None), made_of)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[torch.device]:
    """Make the directory of a control and hold it for this job; gives the device. Collective."""
    quiet_libraries()
    device = dist.initialise()
    dist.on_main(lambda: directory.mkdir(parents=True, exist_ok=True))
    with locks.alone(directory, "measuring a control in"):
        yield device


def _validate(
    study: StudyRecipe,
    encoder: TappedEncoder,
    device: torch.device,
    has_head: bool,
    start: FirstHead,
    pieces: PartitionedModel | None = None,
) -> dict[str, Any]:
    """What the validation of students finds of ``encoder``; in one call of ``pieces`` where those hold its weights."""
    validation = Validation(study.data, study.validation, device, study.training.precision == "bf16")
    embeddings = encoder.embeddings if pieces is None else pieces.whole(encoder.embeddings)
    measure: Callable[[], Any] = functools.partial(
        validation.measure, encoder, embeddings.detach().float().cpu().clone(), has_head, start
    )
    with stages.stage("validation"):
        scores: dict[str, Any] | None = measure() if pieces is None else pieces.run(measure)
    assert scores is not None  # nothing asked it to stop
    return scores


def _export(study: StudyRecipe, model: PreTrainedModel, tokenizer_path: Path, where: Path) -> str:
    card = {
        "name": f"{study.name}: untrained student, seed {study.seeds[0]}",
        "objective": "none",
        "objective_in_words": "none (these are the first weights of the study's students)",
        "seed": study.seeds[0],
        "tokens": 0,
        "flops": 0.0,
        "budget": "none",
        "data": "none",
        "untrained_parameters": [],  # all of them; fine-tuning treats them like those of a student, none apart
    }
    weights = {name: weight.detach().float().cpu() for name, weight in model.named_parameters()}
    export(model, weights, tokenizer_path, where, card)
    return model_hash(where)


def _finish(
    name: str,
    directory: Path,
    found: dict[str, Any],
    scores: dict[str, Any],
    facts: dict[str, Any],
    made_of: dict[str, Any],
) -> dict[str, Any]:
    """Write the summary, which says that the control is measured."""
    validation = {"mlm_loss": None, "mlm_accuracy": None, **scores}
    summary = {"status": "finished", "control": name, **found, "validation": validation}
    summary |= {"fingerprint": facts, "made_of": made_of}
    if dist.is_main():
        with disk_full_is_clear(directory):
            write_json(directory / SUMMARY, summary)
    dist.barrier()
    say(f"control {name}: held-out MLM loss {scores['probe_mlm_loss']:.3f} nats (probe)")
    return summary
