"""Every key of a recipe says what hangs on it, and who compares recipes goes by that."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
from pydantic import create_model
from small_shards import random_documents, write_shard_set
from study_on_disk import ARMS, recipe_data, study_recipe

from data_prep import prepare
from kd_megatron.data import loader
from kd_megatron.finetune.grid.jobs import list_jobs
from kd_megatron.recipe import (
    CorpusRecipe,
    DataRecipe,
    FinetuneRecipe,
    SourceRecipe,
    StudyRecipe,
    TokenizerRecipe,
    TrainingRecipe,
    config,
)
from kd_megatron.recipe.diff import changes, left_out, own_policies, policy_of, with_defaults, without
from kd_megatron.recipe.policy import COUNTS, KEPT
from kd_megatron.training.run import settings

RECIPES = [StudyRecipe, FinetuneRecipe, CorpusRecipe]


def unsaid(schema, prefix=""):
    """The dotted keys of which neither they nor a section around them says what hangs on them."""
    for name, field in schema.model_fields.items():
        if not own_policies(schema, name):
            below = config.section_in(field.annotation)
            yield from unsaid(below, f"{prefix}{name}.") if below else [prefix + name]


def with_key(schema, annotation, default):
    return create_model("Planted", __base__=schema, planted=(annotation, default))


@pytest.mark.parametrize("schema", RECIPES)
def test_every_key_says_what_hangs_on_it(schema):
    assert list(unsaid(schema)) == []


@pytest.mark.parametrize("schema", RECIPES)
def test_a_key_that_says_nothing_is_found(schema):
    assert list(unsaid(with_key(schema, int, 0))) == ["planted"]
    section = with_key(TrainingRecipe, int, 0)
    assert "planted.learning_rate" in list(unsaid(with_key(schema, section, section())))
    assert list(unsaid(with_key(schema, Annotated[section, COUNTS], section()))) == []


def test_a_new_key_is_one_line():
    schema = with_key(StudyRecipe, Annotated[str, KEPT], "red")
    old, new = (schema.model_validate(recipe_data(planted=colour)) for colour in ("red", "blue"))
    assert [change.key for change in changes(schema, old, new)] == ["planted"]
    assert changes(schema, old, new, but="resume") == []
    assert [change.key for change in changes(schema, old, new, but="edit")] == ["planted"]


@pytest.mark.parametrize(
    ("key", "comparison", "is_free"),
    [
        ("student.hidden_size", "laws", True),
        ("teacher.train.encoder.hidden_size", "laws", False),  # the same section: studies of one law share a teacher
        ("budget.flops", "laws", True),
        ("teacher.train.budget.flops", "laws", False),
        ("tuning.budget.flops", "laws", False),
        ("budget.calibrated.steps", "record", True),  # what is in a section is as free as that is
        ("training.tensorboard", "resume", True),
        ("finetune.tensorboard", "resume", False),
        ("training.log_every_steps", "resume", False),  # rows of metrics would be of two kinds
        ("training.log_every_steps", "teacher", True),  # of a teacher that is finished nobody reads them
        ("validation.probe_steps", "teacher", True),
        ("arms.path.path", "record", False),  # an objective's own
        ("no.such.key", "edit", False),
    ],
)
def test_a_key_is_free_where_it_and_its_sections_say(key, comparison, is_free):
    assert (comparison in policy_of(StudyRecipe, key).free) is is_free


@pytest.mark.parametrize(
    ("key", "stale", "of_study"),
    [
        ("data.seed", ("students", "teacher"), False),
        ("teacher.cache.path", ("taught", "teacher"), False),
        ("teacher.train.budget.flops", ("taught", "teacher"), False),
        ("budget.charge", ("students",), False),
        ("finetune.grid.batch_sizes", ("finetune",), False),
        ("arms.minilm.weight", ("arm",), True),
        ("tuning.budget.flops", ("students",), True),
        ("notes", None, True),
    ],
)
def test_what_an_edit_makes_stale_and_whose_a_key_is(key, stale, of_study):
    assert (policy_of(StudyRecipe, key).stale, policy_of(StudyRecipe, key).of_study) == (stale, of_study)


def test_entries_of_arms_are_known_by_arm_whatever_its_name():
    arms = {"a.b": ARMS["minilm"], "a": {"objective": "scratch"}}
    other = arms | {"a.b": ARMS["minilm"] | {"num_relation_heads": 24}}
    (change,) = changes(StudyRecipe, study_recipe(arms=arms), study_recipe(arms=other))
    assert (change.key, change.arm, change.was, change.now) == ("arms.a.b.num_relation_heads", "a.b", 12, 24)


@pytest.mark.parametrize(
    ("key", "was", "now", "only_adds"),
    [
        ("seeds", [0, 1], [1, 0, 2], True),
        ("seeds", [0, 1], [1], False),
        ("data.shards", [], [1], False),  # a list, but not one that may grow
    ],
)
def test_some_lists_may_grow(key, was, now, only_adds):
    section, _, name = key.rpartition(".")
    old, new = ({section: {name: value}} if section else {name: value} for value in (was, now))
    assert [change.only_adds for change in changes(StudyRecipe, old, new)] == [only_adds]


def test_a_switch_may_go_on_and_not_off():
    on, off = ({"markers": {"finetune": value}} for value in (True, False))
    assert [change.only_adds for change in (*changes(StudyRecipe, off, on), *changes(StudyRecipe, on, off))] == [1, 0]


def test_keys_may_be_named_and_what_no_schema_knows_is_compared():
    was, now = {"run": {"seed": 0}, "data": {"seed": 1}}, {"run": {"seed": 1}, "data": {"seed": 2}}
    assert [change.key for change in changes(StudyRecipe, was, now)] == ["run.seed", "data.seed"]
    assert [change.key for change in changes(StudyRecipe, was, now, among=["data.seed"])] == ["data.seed"]


def test_words_go_and_all_else_stays():
    recipe = study_recipe(output="somewhere")
    bare = without(recipe, "edit")
    assert (bare.description, bare.notes, bare.output) == ("", [], None)
    assert bare == recipe.model_copy(update={"description": "", "notes": [], "output": None})


def test_an_older_recipe_is_read_with_defaults_and_an_unknown_one_as_it_is():
    raw = study_recipe().model_dump(mode="json")
    del raw["validation"]
    assert with_defaults(StudyRecipe, raw) == study_recipe().model_dump(mode="json")
    assert with_defaults(StudyRecipe, {"colour": "red"}) == {"colour": "red"}


def test_a_run_records_what_it_was_given_but_for_what_a_resume_may_change():
    found = settings(study_recipe())
    assert list(found) == ["data", "student", "teacher", "arms", "budget", "training", "validation"]
    assert "partition" not in found["teacher"]
    assert {"micro_batch_size", "ds_config", "tensorboard"}.isdisjoint(found["training"])
    assert {"learning_rate", "log_every_steps", "keep_at"} <= found["training"].keys()
    assert settings(study_recipe(teacher=None, arms={"scratch": ARMS["scratch"]}))["teacher"] is None


def test_hashes_are_what_they_were(tmp_path, monkeypatch):
    """Recorded before keys had policies: finished cells, shard sets and runs stay valid."""
    rows = type("Rows", (list,), {"first": ["a b", "c"], "second": None})([1, 2])
    task = SimpleNamespace(name="rte", train=rows, content_hash=lambda: "c0ffee")
    jobs = list_jobs(task, FinetuneRecipe(tasks=[{"name": "rte"}], crossed_seeds=True), "abc", Path("x"), "student")
    assert [job.key for job in jobs[:2]] == ["2806987aac9d", "26cefacb5745"]

    documents = {"train-00000": random_documents(0, 20), "valid-00000": random_documents(1, 4)}
    shards = [{"path": str(write_shard_set(tmp_path / "s", documents))}]
    read = [DataRecipe(shards=shards, corpus="a.yaml", mask_seed=seed) for seed in (None, 3)]
    assert [loader._content_hash(recipe) for recipe in read] == ["fb5c62aa05c5c085", "5513dd1e130f75b8"]

    monkeypatch.setattr(prepare.read, "fingerprint", lambda source: "f")
    monkeypatch.setattr(prepare.read, "tokenizer_fingerprint", lambda load: "t")
    source, tokenizer = SourceRecipe(type="files", paths=["x"]), TokenizerRecipe(load="t")
    corpus = CorpusRecipe(kind="corpus", name="c", output="o", sources=[source], tokenizer=tokenizer)
    assert prepare._key(corpus) == "3f802434aded"
    assert left_out(CorpusRecipe, "shards").keys() == {"output", "num_workers", "description"}
