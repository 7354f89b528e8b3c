"""A teacher by hub id and revision: the very commit is read, recorded and asked for. The hub is its own local cache,
in its own layout, offline: transformers and huggingface_hub are the real ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_study import write_inputs, write_teacher

from kd_megatron.errors import DataError, ModelError, RecipeError
from kd_megatron.files import hub
from kd_megatron.finetune.tasks import glue
from kd_megatron.recipe import FinetuneRecipe, SourceRecipe, StudyRecipe, TokenizerRecipe

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"

SCRIPT = """
import json, sys
from pathlib import Path
from kd_megatron.files import hub
from kd_megatron.errors import ModelError
from kd_megatron.training.run import pretrain
from kd_megatron.study.effective import run_recipe
from kd_megatron.study.piece import teacher_path
from tiny_study import tiny_study

inputs, old, new = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
found = {}
for revision in (old, new, "main", None, "f" * 40, "no-such-branch"):
    try:
        found[str(revision)] = hub.local_directory("org/tiny", revision, "teacher")
    except ModelError as error:
        found[str(revision)] = f"ModelError {error}"
teacher = {"path": "org/tiny", "revision": old, "precision": "fp32"}
study = tiny_study(inputs, teacher=teacher, budget={"tokens": 2 * 8 * 16}, name="pinned")
study = run_recipe(study, "minilm", 0)
summary = pretrain(study, "minilm", 0, inputs / "run", teacher_path(study, inputs))
print(json.dumps({"found": found, "teacher": summary["teacher"]["path"], "facts": summary["fingerprint"]}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process sees of a hub that has two commits of a model, the newer one as its main branch."""
    place = tmp_path_factory.mktemp("hub")
    inputs = write_inputs(place / "inputs")
    repository = place / "home/hub/models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(NEW)
    shutil.copytree(inputs / "teacher", repository / "snapshots" / OLD)
    write_teacher(repository / "snapshots" / NEW, inputs / "shards/tokenizer", initializer_range=0.3)
    environment = {
        **os.environ, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }  # fmt: skip
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(inputs), OLD, NEW], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr, "inputs": inputs}


def test_a_commit_is_that_commit_and_a_branch_what_it_points_to(outcome: dict[str, Any]):
    ends = {revision: Path(path).name for revision, path in outcome["found"].items()}
    assert ends[OLD] == OLD
    assert ends[NEW] == ends["main"] == ends["None"] == NEW


@pytest.mark.parametrize("revision", ["f" * 40, "no-such-branch"])
def test_a_revision_that_is_not_there_is_a_clear_error(outcome: dict[str, Any], revision: str):
    assert outcome["found"][revision].startswith("ModelError teacher: 'org/tiny' at revision")
    assert "hf download ID --revision COMMIT" in outcome["found"][revision]


def test_only_what_may_change_is_warned_of(outcome: dict[str, Any]):
    warnings = [line for line in outcome["stderr"].splitlines() if "may change" in line]
    assert len(warnings) == 2  # of the branch and of no revision at all, not of the commits
    assert all(f"teacher.revision={NEW}" in line for line in warnings)


def test_a_run_reads_the_pinned_commit_and_records_it(outcome: dict[str, Any]):
    from kd_megatron.files.manifest import weights_hash

    assert outcome["teacher"] == outcome["facts"]["teacher_source"] == f"org/tiny@{OLD}"
    assert outcome["facts"]["teacher"] == weights_hash(str(outcome["inputs"] / "teacher"))  # OLD's weights, not NEW's


def test_a_local_directory_has_no_revision(tmp_path: Path):
    assert hub.local_directory(str(tmp_path), None, "teacher") == str(tmp_path)
    with pytest.raises(ModelError, match=r"teacher\.revision 'main' with the local path"):
        hub.local_directory(str(tmp_path), "main", "teacher")
    assert hub.source_of(str(tmp_path)) is None


@pytest.mark.parametrize("revision", ["", "../main", "a b", "-x", "a..b", "x\0"])
def test_a_revision_that_git_cannot_have_is_refused(revision: str):
    with pytest.raises(ValueError, match="a revision of the hub"):
        SourceRecipe(type="huggingface", dataset="org/texts", revision=revision)


def test_a_revision_belongs_to_something_of_the_hub():
    from kd_megatron.recipe import config

    with pytest.raises(ValueError, match="'revision' belongs to 'load'"):
        TokenizerRecipe.model_validate({"train": {}, "revision": OLD})
    raw = {"tasks": [{"name": "RTE"}], "glue_path": "glue", "glue_revision": OLD}
    with pytest.raises(RecipeError, match="glue_path names a local one"):
        config.validate(FinetuneRecipe, raw, where="here")


def test_data_sets_are_asked_for_at_their_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The call is caught where it leaves for the library: offline there is nothing behind it."""
    import datasets

    from data_prep import read

    asked = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="could not be loaded from the hub"):
        glue.read_hub("RTE", None, with_tests=False)
    with pytest.raises(DataError, match="could not be loaded from the hub"):
        glue.read_hub("RTE", OLD, with_tests=False)
    with pytest.raises(DataError, match="cannot be read"):
        list(read._hub_documents(SourceRecipe(type="huggingface", dataset="org/texts", revision=NEW)))
    assert [options["revision"] for _, options in asked] == [glue.HUB_REVISION, OLD, NEW]
    assert not any("trust_remote_code" in options for _, options in asked)  # this datasets runs no code at all
    with pytest.raises(DataError, match="of the local data set"):
        list(read._hub_documents(SourceRecipe(type="huggingface", dataset=str(tmp_path), revision=NEW)))
    assert len(asked) == 3


@pytest.mark.parametrize("name", ["paper_6l", "paper_6l_limited", "paper_12l"])
def test_shipped_recipes_pin_their_teacher(name: str):
    from kd_megatron.recipe import config

    teacher = config.load(ROOT / f"recipes/{name}.yaml", StudyRecipe).teacher
    assert teacher is not None
    assert hub.is_commit(teacher.revision)
