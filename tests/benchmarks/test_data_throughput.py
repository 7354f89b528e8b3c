"""`bench data` in small: what it measures is real, and opening and reading do not grow with the pool."""

import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import bench_data
from benchmarks.data import data_throughput, made_up_pools, prepare_throughput
from benchmarks.data.in_turn import TurnTaker, measure
from benchmarks.rows import Row
from data_prep.verify import verify
from kd_megatron import errors
from kd_megatron.cli import main as cli
from kd_megatron.data import index
from kd_megatron.data.loader import Loader
from kd_megatron.recipe import DataRecipe
from kd_megatron.tensors import IGNORED

SMALL, LARGE = 50_000, 5_000_000


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return made_up_pools.pools(tmp_path_factory.mktemp("pools"), [SMALL, LARGE])


def loader(path: Path) -> Loader:
    return Loader(DataRecipe.model_validate({"shards": [{"path": str(path)}]}), run_seed=0)


# --- the command ---


def test_the_command_measures_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench_data, "ROUNDS", dict.fromkeys(bench_data.ROUNDS, 1))
    json_file, kept = tmp_path / "rows.json", tmp_path / "pools"
    arguments = ["bench", "data", "--tokens", "200000", "--text-mb", "0.1", "--directory", str(kept)]
    assert cli.main([*arguments, "--json", str(json_file)]) == 0
    record = json.loads(json_file.read_text())
    assert {"date", "commit", "versions", "hardware", "rows"} <= record.keys()
    rows = [Row(**row) for row in record["rows"]]
    lengths, pair = ("B256 L128", "B64 L512"), ("20,000 tokens", "200,000 tokens")
    expected = {(name, shape, pool) for name in ("data/gather", "data/batch") for shape in lengths for pool in pair}
    expected |= {("data/mask", shape, backend) for shape in lengths for backend in ("megatron-core", "ours")}
    expected |= {("data/open", f"{pool} L128", how) for pool in pair for how in ("first", "verified", "from disk")}
    prepared = [row for row in rows if row.name == "data/prepare"]
    assert {(row.name, row.shape, row.backend) for row in rows if row not in prepared} == expected
    assert [row.backend for row in prepared] == ["Megatron-LM", "ours, 2 workers"]
    for row in rows:
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
        assert row.tokens_per_second > 0
        assert row.ratio > 0
        assert (row.ratio == 1.0) or row.backend != row.ratio_to
    shown = capsys.readouterr().out
    assert re.search(r"data/prepare 0\.\d+ MB of text", shown)
    assert "Data on one thread" in " ".join(shown.split())
    # The pools stay and are whole; the text that was prepared does not.
    assert sorted(path.name for path in kept.iterdir()) == ["made_up_20000", "made_up_200000"]
    for path in kept.iterdir():
        verify(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--tokens", "500"], errors.RecipeError, "at least 20,000"),
        (["--tokens", "1e16", "--directory", "HERE"], errors.OutputError, "GB free"),
        (["--tokens", "1e5", "--kernel", "score_mse"], errors.RecipeError, "bench data takes no kernel"),
    ],
)
def test_bad_arguments(arguments: list[str], error: type, message: str, tmp_path: Path, capsys):
    arguments = [str(tmp_path) if word == "HERE" else word for word in arguments]
    assert cli.main(["bench", "data", *arguments]) == error.exit_code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- pools ---


def test_a_pool_that_is_there_is_used_again_and_a_torn_one_never(tmp_path: Path):
    (tmp_path / "made_up_30000.partial").mkdir()  # left by a run that was killed
    (path,) = made_up_pools.pools(tmp_path, [30_000])
    assert len(verify(path).split("train")) == 2
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert made_up_pools.pools(tmp_path, [30_000]) == [path]
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert [child.name for child in tmp_path.iterdir()] == ["made_up_30000"]
    (path / "manifest.json").unlink()
    with pytest.raises(errors.OutputError, match="is not a shard set of 30,000 tokens"):
        made_up_pools.pools(tmp_path, [30_000])


def test_a_passing_directory_is_removed(tmp_path: Path):
    with made_up_pools.working_directory(None) as passing:
        (passing / "file").touch()
    assert not passing.exists()
    with made_up_pools.working_directory(tmp_path / "kept") as kept:
        (kept / "file").touch()
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize(
    ("num_tokens", "sizes"),
    [
        (20_000, [2_000, 20_000]),
        (10**8, [10**7, 10**8]),
        (10**9, [10**7, 10**8, 10**9]),
        (2 * 10**7, [10**7, 2 * 10**7]),
    ],
)
def test_sizes_lead_up_to_the_largest(num_tokens: int, sizes: list[int]):
    assert made_up_pools.sizes(num_tokens) == sizes


# --- what must not grow with the pool ---


def num_calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions (numpy's among them) during ``work``."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def peak_bytes(work: Callable[[], object]) -> int:
    """The least of three times: a thread of this process may allocate something of its own meanwhile."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


def test_a_batch_costs_the_same_operations_and_memory_from_any_pool(pools: list[Path]):
    """100 times the pool: the same calls, but for the walks of the order's permutation, which any size may prolong."""
    small, large = (loader(path) for path in pools)
    num_samples = 64
    assert large.num_windows > 90 * small.num_windows > 90 * 4 * num_samples
    calls, peaks = [], []
    for one in (small, large):
        one.batch(0, num_samples)  # whatever the first call imports or fills is not a batch's
        calls.append(num_calls(lambda one=one: one.batch(num_samples, num_samples)))
        peaks.append(peak_bytes(lambda one=one: one.batch(2 * num_samples, num_samples)))
    assert calls[1] < 2 * calls[0]
    assert peaks[1] < 1.1 * peaks[0]


def bytes_read() -> int:
    """Asked of the operating system so far in this process; memory maps are not in it."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what Linux says was read")
def test_opening_reads_the_shards_once_and_their_indexes_every_time(pools: list[Path], monkeypatch):
    path = pools[1]
    monkeypatch.setattr(index, "SETTLED_SECONDS", -1.0)
    (path / index.MEMORY).unlink(missing_ok=True)
    read = []
    for _ in range(2):
        before = bytes_read()
        loader(path)
        read.append(bytes_read() - before)
    bin_bytes = sum(file.stat().st_size for file in path.glob("train*.bin"))
    rest = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.suffix != ".bin")
    assert read[0] > bin_bytes
    assert read[1] < 4 * rest < bin_bytes


# --- the other side ---


def test_megatron_core_masks_the_same_windows(pools: list[Path]):
    case = next(case for case in data_throughput.masking_cases(pools[0], 128) if case.backend == "megatron-core")
    samples = case.work()
    clean = loader(pools[0]).batch(0, len(samples)).clean_ids.numpy()
    for row, sample in zip(clean, samples, strict=True):
        is_masked = sample["labels"] != -1
        assert np.array_equal(sample["text"][~is_masked], row[~is_masked])
        assert np.array_equal(sample["labels"][is_masked], row[is_masked])
        assert 0 < is_masked.sum() <= 0.15 * 128
    ours = loader(pools[0]).batch(0, len(samples))
    assert (ours.labels != IGNORED).sum(1).min() >= 0.14 * 126


def test_both_ways_of_preparing_write_the_same_documents(tmp_path: Path):
    texts = prepare_throughput.embedded_documents(30_000)
    theirs, ours = prepare_throughput.cases(texts, tmp_path)
    assert theirs.num_tokens == ours.num_tokens == len(np.fromfile(tmp_path / "theirs.bin", np.uint16))
    assert verify(tmp_path / "ours").statistics["documents_kept"] == len(texts)
    altered = np.fromfile(tmp_path / "theirs.bin", np.uint16)
    altered[10] += 1
    altered.tofile(tmp_path / "theirs.bin")
    with pytest.raises(errors.DataError, match="differ in 2 documents"):
        prepare_throughput.require_same_documents(tmp_path / "ours", tmp_path / "theirs")


# --- timing in turn ---


def test_rounds_go_forwards_and_backwards_and_the_first_is_not_counted():
    seen: list[str] = []
    cases = [
        TurnTaker(
            "n", "s", name, 100, lambda name=name: seen.append(name), ratio_to="a", before=lambda: seen.append("-")
        )
        for name in ("a", "b")
    ]
    rows = measure(cases, num_rounds=2)
    assert seen == ["-", "b", "-", "a", "-", "a", "-", "b", "-", "b", "-", "a"]
    assert [row.backend for row in rows] == ["a", "b"]
    assert rows[0].ratio == 1.0
    assert {name for name, value in asdict(rows[1]).items() if value is None} == {"peak_mib", "mfu"}
