"""What all students of a study build on: prepared text, and the teacher where the study trains its own."""

from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.errors import DataError
from kd_megatron.files.manifest import MANIFEST
from kd_megatron.ranks import dist, stages
from kd_megatron.recipe import CorpusRecipe, StudyRecipe, config, diff
from kd_megatron.study import layout
from kd_megatron.study.begin import require_pools
from kd_megatron.study.piece import Piece


def prepare_inputs(recipe: StudyRecipe, directory: Path) -> None:
    """What one run needs before it starts: the data, and the teacher where the study trains its own."""
    from kd_megatron.training.run import refuse_other_teacher

    for piece in input_pieces(recipe, directory):
        if not dist.on_main(piece.is_finished):
            logs.say(piece.label)
            piece.run()
        elif piece.kind == "teacher":  # no study has compared the recipe with the one that it was trained by
            dist.on_main(lambda: refuse_other_teacher(_as_trained(recipe), layout.teacher_directory(directory)))


def input_pieces(recipe: StudyRecipe, directory: Path) -> list[Piece]:
    """The pieces that all students build on."""
    found = [_data_piece(recipe)] if recipe.data.corpus else []
    if recipe.teacher and recipe.teacher.train:
        found.append(_teacher_piece(recipe, directory))
    return found


def _data_piece(recipe: StudyRecipe) -> Piece:
    shards = [Path(entry.path) for entry in recipe.data.shards]

    def run() -> None:
        if dist.is_main():
            from data_prep import prepare

            corpus = config.load(recipe.data.corpus or "", CorpusRecipe)
            with stages.stage("data preparation", watched=False):
                prepare.prepare(corpus)
        dist.wait_for_all()
        require_pools(recipe)  # here too: before the data was prepared, its windows could not be counted
        absent = [str(path) for path in shards if not (path / MANIFEST).is_file()]
        if absent:
            raise DataError(
                given=f"data.corpus {recipe.data.corpus} was prepared, but {', '.join(absent)} is still not there",
                expected="data.shards paths that the corpus recipe writes (its 'output')",
                fix="make data.shards and the corpus recipe's output agree, or prepare the other shard sets first",
            )

    def is_finished() -> bool:
        return all((path / MANIFEST).is_file() for path in shards)

    return Piece("data", "data: prepare", is_finished, run, barrier=True)


def _teacher_piece(recipe: StudyRecipe, directory: Path) -> Piece:
    where = layout.teacher_directory(directory)

    def run() -> None:
        from kd_megatron.training.run import train_teacher

        train_teacher(_as_trained(recipe), where)

    return Piece("teacher", "teacher: train", lambda: layout.finished_run(where) is not None, run, barrier=True)


def _as_trained(recipe: StudyRecipe) -> StudyRecipe:
    """What a teacher's run is given of ``recipe``: no words, and no tuning, which is of students."""
    return diff.without(recipe, "edit").model_copy(update={"tuning": None})
