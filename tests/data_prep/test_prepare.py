"""From a recipe to a shard set: the same bytes whatever happens on the way, and nothing overwritten."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from harbour_book import english_document, write_jsonl

from data_prep import prepare as module
from data_prep import read, write
from data_prep.clean import clean_text
from data_prep.prepare import prepare
from data_prep.tokenize import load
from data_prep.verify import read_index, verify
from data_prep.write import read_spool
from kd_megatron.errors import DataError, ModelError, OutputError
from kd_megatron.files import locks
from kd_megatron.files.manifest import read_manifest
from kd_megatron.recipe import SourceRecipe

REPOSITORY = Path(__file__).resolve().parents[2]


def contents(directory):
    """Every file of a shard set by its path; the manifest without the output's own path."""
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["recipe"]["output"], manifest["recipe"]["num_workers"], manifest["checksum"]
    return found | {"manifest.json": manifest}


def decoded_documents(directory):
    """The text of every document in a shard set, by shard."""
    tokenizer = load(str(directory / "tokenizer"))
    manifest = read_manifest(directory)
    for shard in manifest.shards:
        tokens = np.fromfile(directory / f"{shard.name}.bin", dtype=manifest.dtype).astype(np.int64)
        index = read_index(directory / f"{shard.name}.idx")
        for document in np.split(tokens, np.cumsum(index.lengths)[:-1]):
            assert document[-1] == tokenizer.sep_token_id
            assert tokenizer.sep_token_id not in document[:-1]
            yield shard.name, tokenizer.decode(document[:-1])


def test_every_document_comes_back_once(corpus, make_recipe):
    out = prepare(make_recipe(corpus))
    manifest = verify(out)
    assert manifest.statistics["documents_read"] == 324
    assert manifest.statistics["documents_kept"] == 300
    assert manifest.statistics["dropped_duplicate"] == 20
    for reason in ("too_short", "too_long", "few_letters", "not_english"):
        assert manifest.statistics[f"dropped_{reason}"] == 1
    assert manifest.dtype == "uint16"
    assert manifest.sources[0]["licence"] == "CC0"
    assert [shard.name for shard in manifest.shards] == ["train-00000", "train-00001", "train-00002", "valid-00000"]
    assert sum(shard.documents for shard in manifest.split("valid")) < 60

    normalizer = load(str(out / "tokenizer")).backend_tokenizer
    expected = collections.Counter(
        normalizer.decode(normalizer.encode(clean_text(english_document(index)), add_special_tokens=False).ids)
        for index in range(300)
    )
    assert collections.Counter(text for _, text in decoded_documents(out)) == expected
    assert not list(out.parent.glob("out.partial-*"))


def test_duplicates_stay_when_asked(corpus, make_recipe):
    recipe = make_recipe(corpus, clean={"min_characters": 100, "max_characters": 20_000, "deduplicate": False})
    assert verify(prepare(recipe)).statistics["documents_kept"] == 320


def test_one_and_two_workers_write_the_same_bytes(corpus, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.read._BATCH_CHARACTERS", 20_000)  # so that several batches are in flight
    one = prepare(make_recipe(corpus, output=str(tmp_path / "one")), workers=1)
    two = prepare(make_recipe(corpus, output=str(tmp_path / "two")), workers=2)
    assert contents(one) == contents(two)


def test_a_held_out_document_stays_held_out_in_another_corpus(corpus, make_recipe, tmp_path):
    def held_out(path, output):
        out = prepare(make_recipe(path, output=str(tmp_path / output), tokenizer={"load": str(tokenizer)}))
        return {text for name, text in decoded_documents(out) if name.startswith("valid")}

    tokenizer = prepare(make_recipe(corpus, output=str(tmp_path / "first"))) / "tokenizer"
    small = write_jsonl(tmp_path / "small.jsonl", [english_document(index) for index in range(150, 400)])
    large = write_jsonl(tmp_path / "large.jsonl", [english_document(index) for index in range(500)])
    assert held_out(small, "a") < held_out(large, "b")


def test_finished_returns_at_once_and_never_touches_another_set(corpus, make_recipe, tmp_path):
    out = prepare(make_recipe(corpus))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    prepare(make_recipe(corpus, num_workers=5, description="other words"))
    corpus.unlink()  # the set stands on its own
    prepare(make_recipe(corpus))
    with pytest.raises(OutputError, match=r"another recipe's shard set \(different: num_shards\)"):
        prepare(make_recipe(corpus, num_shards=2))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_changed_sources_are_mentioned(corpus, make_recipe, capsys, monkeypatch):
    prepare(make_recipe(corpus))
    write_jsonl(corpus, [english_document(index) for index in range(50)])
    said = []
    monkeypatch.setattr(module.logs, "warn", said.append)
    prepare(make_recipe(corpus))
    assert len(said) == 1
    assert "changed since" in said[0]


def test_an_output_with_other_files_is_left_alone(corpus, make_recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="is not a shard set"):
        prepare(make_recipe(corpus))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_an_empty_output_directory_is_fine(corpus, make_recipe, tmp_path):
    (tmp_path / "out").mkdir()
    verify(prepare(make_recipe(corpus)))


def test_two_at_a_time_is_refused(corpus, make_recipe, tmp_path):
    recipe = make_recipe(corpus)
    partial = tmp_path / f"out.partial-{module._key(recipe)}"
    partial.mkdir()
    with locks.exclusive(partial, wait=False), pytest.raises(OutputError, match="another process is preparing"):
        prepare(recipe)
    verify(prepare(recipe))


def test_another_recipe_into_the_same_output_is_refused_too(corpus, make_recipe, tmp_path):
    (other := tmp_path / "out.partial-0123456789ab").mkdir()
    with (
        locks.exclusive(other, wait=False),
        pytest.raises(OutputError, match="another process is preparing") as refused,
    ):
        prepare(make_recipe(corpus))
    assert refused.value.fix == "choose another 'output'"
    assert [path.name for path in tmp_path.glob("out*")] == [other.name]


def test_one_that_waited_for_the_lock_finds_the_set_finished(corpus, make_recipe, monkeypatch):
    recipe = make_recipe(corpus)
    found = iter([False])  # at the first look
    is_finished = module._is_finished
    prepare(recipe)
    monkeypatch.setattr(module, "_is_finished", lambda *given: next(found, None) is None and is_finished(*given))
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    assert prepare(recipe) == Path(recipe.output)
    assert list(Path(recipe.output).parent.glob("*.partial*")) == []


def test_a_set_that_was_made_meanwhile_is_not_touched(corpus, make_recipe, tmp_path, monkeypatch):
    build = module._build

    def build_and_lose(*given):
        manifest = build(*given)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("precious")
        return manifest

    monkeypatch.setattr(module, "_build", build_and_lose)
    with pytest.raises(OutputError, match="was made by another process meanwhile"):
        prepare(make_recipe(corpus))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_tokenizer_that_cannot_be_had_costs_no_reading(corpus, make_recipe, monkeypatch):
    monkeypatch.setattr(module, "fill", lambda *_: pytest.fail("the corpus was read"))
    with pytest.raises(ModelError, match="no-such-directory"):
        prepare(make_recipe(corpus, tokenizer={"load": "./no-such-directory"}))


def test_a_local_data_set_is_known_by_its_files(tmp_path):
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "a.jsonl", [])
    source = SourceRecipe(type="huggingface", dataset=str(tmp_path / "set"), licence="CC0")
    before = read.fingerprint(source)
    write_jsonl(tmp_path / "set" / "a.jsonl", ["other text"])
    assert read.fingerprint(source) != before


def test_the_key_follows_recipe_and_sources(corpus, make_recipe):
    key = module._key(make_recipe(corpus))
    assert key == module._key(make_recipe(corpus, num_workers=7, description="x"))
    assert key != module._key(make_recipe(corpus, num_shards=4))
    os.utime(corpus, ns=(1, 1))
    assert key != module._key(make_recipe(corpus))


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"clean": {"min_characters": 50_000}}, DataError, "no training document is left"),
        ({"valid_fraction": 0.00001}, DataError, "held-out split"),
        ({"tokenizer": {"load": "no/such/tokenizer"}}, ModelError, "no/such/tokenizer"),
        ({"sources": [{"type": "files", "paths": ["no/such.jsonl"]}]}, DataError, "no/such.jsonl does not exist"),
        ({"sources": [{"type": "installed_docs", "packages": ["nothing_like_it"]}]}, DataError, "nothing_like_it"),
        ({"sources": [{"type": "huggingface", "dataset": "no/such-data"}]}, DataError, "no/such-data"),
    ],
)
def test_a_recipe_that_cannot_work_is_one_clear_error(corpus, make_recipe, tmp_path, monkeypatch, keys, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        prepare(make_recipe(corpus, **keys))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_bad_lines_leave_an_earlier_set_intact(corpus, make_recipe, tmp_path):
    good = prepare(make_recipe(corpus))
    with corpus.open("a") as file:
        file.write('{"text": "torn')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 325: not JSON"):
        prepare(make_recipe(corpus, output=str(tmp_path / "second")))
    verify(good)
    assert not list(tmp_path.glob("second*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error(corpus, make_recipe, monkeypatch):
    """A shard goes to /dev/full, where every write fails as on a full disk; then there is room again."""
    writer = write.IndexedWriter
    monkeypatch.setattr(write, "IndexedWriter", lambda path, dtype: writer(Path("/dev/full"), dtype))
    with pytest.raises(OutputError, match="no space left on the disk"):
        prepare(make_recipe(corpus))
    monkeypatch.undo()
    verify(prepare(make_recipe(corpus)))


def test_a_local_data_set_streams_like_one_of_the_hub(corpus, make_recipe, tmp_path):
    """The same rows read as a file and through `datasets` make the same shards."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_bytes(corpus.read_bytes())
    source = {"type": "huggingface", "dataset": str(tmp_path / "hub"), "licence": "CC0"}
    through = prepare(make_recipe(corpus, sources=[source], output=str(tmp_path / "through")))
    direct = prepare(make_recipe(corpus))
    assert read_manifest(through).content_hash() == read_manifest(direct).content_hash()


def test_max_documents_takes_the_first_ones(corpus, make_recipe):
    source = {"type": "files", "paths": [str(corpus)], "max_documents": 100}
    assert read_manifest(prepare(make_recipe(sources=[source]))).statistics["documents_read"] == 100


def test_installed_docs_become_shards(make_recipe):
    source = {"type": "installed_docs", "packages": ["rich", "yaml"]}
    manifest = verify(prepare(make_recipe(sources=[source])))
    assert manifest.tokens("train") > 20_000


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_kill_in_the_middle_then_the_same_bytes(make_recipe, tmp_path, workers):
    """kill -9 after the first finished shard: finished shards are kept as they are, the rest is written."""
    texts = [english_document(index, num_sentences=60) for index in range(600)]
    corpus = write_jsonl(tmp_path / "large.jsonl", texts)
    recipe = make_recipe(corpus, num_shards=12, num_workers=workers)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    script = (
        "from data_prep.prepare import prepare\nfrom kd_megatron.recipe import config\n"
        "from kd_megatron.recipe import CorpusRecipe\n"
        f"if __name__ == '__main__': prepare(config.load({str(tmp_path / 'recipe.yaml')!r}, CorpusRecipe))"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment, cwd=tmp_path)
    partial = tmp_path / f"out.partial-{module._key(recipe)}"
    while not list(partial.glob("train-*.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()

    time.sleep(1.0)  # orphaned workers would go on writing
    finished = {path.stem for path in partial.glob("*.json")} - {"spool"}
    assert 1 <= len(finished) < 13
    inodes = {name: (partial / f"{name}.bin").stat().st_ino for name in finished}
    left = [name for name in finished if (partial / "spool" / f"{name}.jsonl").exists()]
    assert len(left) <= workers  # killed between the entry and the end of its spool

    resumed = prepare(recipe, workers=1)
    assert {name: (resumed / f"{name}.bin").stat().st_ino for name in finished} == inodes
    assert {path.stem for path in partial.glob("*.json")} == set()
    verify(resumed)
    whole = prepare(make_recipe(corpus, num_shards=12, output=str(tmp_path / "whole")))
    assert contents(resumed) == contents(whole)


def test_killed_between_the_manifest_and_the_rename(corpus, make_recipe, tmp_path, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(make_recipe(corpus))
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    resumed = prepare(make_recipe(corpus))
    whole = prepare(make_recipe(corpus, output=str(tmp_path / "whole")))
    assert contents(resumed) == contents(whole)


def test_a_spool_keeps_any_text(tmp_path):
    texts = ["line\nbreaks\u2028\u0085inside", 'quotes " and \\ and \t', "ünï"]
    path = tmp_path / "spool.jsonl"
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), newline="\n")
    assert list(read_spool(path)) == texts
