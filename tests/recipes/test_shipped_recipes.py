"""Every shipped recipe loads, its arms' options parse, its studies can be planned, and its comments tell the truth."""

from pathlib import Path

import pytest

from kd_megatron import recipe as schema
from kd_megatron.files.hub import is_local
from kd_megatron.recipe import config
from kd_megatron.recipe.arms import split_arm
from kd_megatron.recipe.paths import expand

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"study": schema.StudyRecipe, "corpus": schema.CorpusRecipe, "finetune": schema.FinetuneRecipe}
SHIPPED = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml"))
STUDIES = [path for path in SHIPPED if config.read_yaml(ROOT / path).get("kind") == "study"]
PROMISED = ("demo", "debug", "wiki_small", "wiki_small_cached", "paper_6l", "paper_12l", "paper_6l_limited",
            "paper_6l_as_coded", "wiki_small_as_coded", "wiki_small_break_even", "wiki_tiny", "variants", "glue",
            "minilm_l6_mlm",
            "glue_study", "data/wikipedia_books", "data/installed_docs", "data/wiki_small", "data/wiki_tiny",
            "data/wikipedia_sample", "data/wikipedia_sample_4k", "data/wikipedia_teacher",
            "data/debug")  # fmt: skip
FOUR_ARMS = ["scratch", "vanilla_kd", "minilm", "tinybert"]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch):
    """Paths in recipes are relative to the repository's root."""
    monkeypatch.chdir(ROOT)


def load(path: str, *overrides: str):
    return config.load(path, KINDS[config.read_yaml(path)["kind"]], list(overrides))


def study(name: str) -> schema.StudyRecipe:
    return load(f"recipes/{name}.yaml")


@pytest.mark.parametrize("name", PROMISED)
def test_promised_recipes_are_shipped(name):
    assert f"recipes/{name}.yaml" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED)
def test_it_loads_and_is_called_as_its_file(path):
    recipe = load(path)
    assert getattr(recipe, "name", Path(path).stem) == Path(path).stem


@pytest.mark.parametrize("path", STUDIES)
def test_its_arms_parse_and_differ_in_the_objective_alone(path):
    from kd_megatron.objectives import of_arm, registry
    from kd_megatron.study import fairness

    recipe = load(path)
    for arm, options in recipe.arms.items():
        own, _ = split_arm(options)
        assert of_arm.parse_options(own, f"{path}: arms.{arm}").objective in {*registry.OBJECTIVES, *of_arm.COMPOSED}
    allowed = ["student.initialise.method"] if recipe.name == "variants" else []
    assert [difference.key for difference in fairness.check(recipe)] == allowed


@pytest.mark.parametrize("path", STUDIES)
def test_its_corpus_makes_the_shards_it_reads(path):
    recipe = load(path)
    assert recipe.data.corpus is not None
    assert [shards.path for shards in recipe.data.shards] == [load(recipe.data.corpus).output]


@pytest.mark.parametrize("path", STUDIES)
def test_it_can_be_planned(path):
    from kd_megatron.planner.plan import plan

    recipe = load(path)
    teacher = recipe.teacher and recipe.teacher.path
    if teacher and is_local(teacher) and not Path(expand(teacher)).exists():
        pytest.skip(f"needs real inputs: KD_DATA names no directory with {teacher}")
    planned = plan(recipe)
    assert [entry.arm for entry in planned.arms] == list(recipe.arms)
    for entry in planned.arms:
        distils = entry.objective != "scratch"
        assert (entry.cost.teacher_flops_per_token > 0) == distils
        if recipe.budget.unit != "hours":
            assert entry.steps is not None
            assert entry.steps >= 10, "a budget that ends before the warm-up tells nothing"


@pytest.mark.parametrize("path", STUDIES)
def test_its_training_sizes_fit(path):
    recipe = load(path)
    assert recipe.training.global_batch_size % recipe.training.micro_batch_size == 0
    assert recipe.data.sequence_length <= recipe.student.max_positions
    assert (ROOT / f"ds_configs/{recipe.training.ds_config}.json").is_file()
    if recipe.finetune:
        assert recipe.finetune.max_length <= recipe.student.max_positions


@pytest.mark.parametrize(
    "name", ["demo", "wiki_small", "wiki_small_cached", "paper_6l", "paper_12l", "paper_6l_limited"]
)
def test_studies_compare_the_four_objectives_with_several_seeds(name):
    recipe = study(name)
    assert [options["objective"] for options in recipe.arms.values()] == FOUR_ARMS
    assert len(recipe.seeds) >= 2
    assert recipe.finetune is not None


def test_variants_show_every_axis_of_distillation_and_only_first_weights_differ_outside_of_the_objective():
    arms = study("variants").arms
    given = {key for options in arms.values() for key in options} - {"objective"}
    assert given == {
        "num_relation_heads", "teacher_layer", "inputs", "positions", "weight_cosine", "phases", "parts",
        "student.initialise.method",
    }  # fmt: skip
    assert {options["objective"] for options in arms.values()} == {*FOUR_ARMS, "schedule", "combined"}


def test_the_limited_study_is_the_unlimited_one_but_for_hours_and_data():
    full, limited = study("paper_6l").model_dump(), study("paper_6l_limited").model_dump()
    for recipe in (full, limited):
        for key in ("name", "description", "budget"):
            recipe.pop(key)
        recipe["data"].pop("unique_tokens")
    assert full == limited


@pytest.mark.parametrize("name", ["paper_6l", "wiki_small"])
def test_the_study_as_coded_is_the_canonical_one_but_for_its_arms(name):
    canonical, as_coded = study(name), study(f"{name}_as_coded")
    for section in ("data", "student", "teacher", "budget", "training", "validation", "seeds"):
        assert getattr(as_coded, section) == getattr(canonical, section), section
    asked, dropped = canonical.finetune.model_dump(), {"MRPC", "RTE"} if name == "wiki_small" else set()
    asked["tasks"] = [task for task in asked["tasks"] if task["name"] not in dropped]  # the recipe says why
    assert as_coded.finetune.model_dump() == asked
    for arm, options in as_coded.arms.items():
        if arm.endswith("_as_coded"):
            assert options == {"objective": arm.removesuffix("_as_coded"), "as_coded": True}
        elif arm.endswith("_equal_weights"):
            assert options.keys() - canonical.arms["vanilla_kd"].keys() == {"temperature", "weight_kd", "weight_mlm"}
        else:
            assert options == canonical.arms[arm]


def test_the_limited_study_repeats_its_data_about_six_times():
    """27.9e9 tokens are what the study reports for No-KD in these 24 hours."""
    recipe = study("paper_6l_limited")
    assert recipe.budget.hours == 24.0
    assert recipe.data.unique_tokens is not None
    assert round(27.9e9 / recipe.data.unique_tokens) == 6


@pytest.mark.parametrize(("name", "num_layers", "hidden_size"), [("paper_6l", 12, 768), ("paper_12l", 24, 1024)])
def test_the_teachers_cost_is_what_its_source_says(name, num_layers, hidden_size):
    """BERT, appendix A.2: 1,000,000 steps of 256 sequences, 90 % at length 128 and 10 % at 512."""
    teacher = study(name).teacher
    assert teacher is not None
    total = 0.0
    for length, share in ((128, 0.9), (512, 0.1)):
        encoder = 6 * 12 * num_layers * hidden_size**2
        attention = 12 * length * hidden_size * num_layers
        head = 6 * 0.15 * hidden_size * (hidden_size + 30_522)
        total += 1e6 * 256 * share * length * (encoder + attention + head)
    assert teacher.cost_flops is not None
    assert f"{teacher.cost_flops:.2e}" == f"{total:.2e}"
    tokens = 1e6 * 256 * (0.9 * 128 + 0.1 * 512)
    assert f"{tokens:.2e} tokens".replace("e+", "e") in teacher.cost_source
