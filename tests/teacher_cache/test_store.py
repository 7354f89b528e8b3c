"""Rows on disk: whole or absent, checked at every reading, one run at a time, never more than there is room for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_megatron.errors import OutputError
from kd_megatron.teacher_cache import store as store_module
from kd_megatron.teacher_cache.contents import Contents
from kd_megatron.teacher_cache.opening import IDENTITY, OpenStore, identity_of
from kd_megatron.teacher_cache.store import INDEX, Store, checksum
from kd_megatron.tensors import ModelShape, Needs

ROWS, BYTES = 50, 1000
CONTENTS = Contents(Needs(hidden=(1,)), "masked", ModelShape(2, 4, 1, 300), 16, 2, 64, 1.0)  # 128 bytes a row
WINDOWS = {"data": ["abc x 1"], "mask_seed": 7, "sequence_length": 16}


def content(rows: list[int], row_bytes: int = BYTES) -> torch.Tensor:
    generators = [np.random.default_rng(row) for row in rows]
    return torch.from_numpy(np.stack([generator.integers(0, 256, row_bytes, np.uint8) for generator in generators]))


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path, BYTES, ROWS)
    store.rows_per_file = 8  # several files
    yield store
    store.close()


def read(store: Store, rows: list[int]) -> tuple[torch.Tensor, list[bool]]:
    data, present = store.read(np.array(rows))
    return data, present.tolist()


def test_what_was_written_is_read_and_the_rest_is_absent(store: Store, tmp_path: Path) -> None:
    rows = [49, 3, 8, 0, 7]
    store.write(np.array(rows), content(rows))
    data, present = read(store, [3, 4, 49, 48, 7])
    assert present == [True, False, True, False, True]
    assert torch.equal(data[[0, 2, 4]], content([3, 49, 7]))
    assert sorted(p.name for p in tmp_path.glob("rows-*")) == ["rows-00000.bin", "rows-00001.bin", "rows-00006.bin"]
    assert store.num_present() == 5
    again = Store(tmp_path, BYTES, ROWS)
    again.rows_per_file = 8
    assert read(again, rows)[1] == [True] * 5
    again.close()


def test_a_row_of_zeros_is_present(store: Store) -> None:
    store.write(np.array([5]), torch.zeros(1, BYTES, dtype=torch.uint8))
    assert read(store, [4, 5, 6])[1] == [False, True, False]


@pytest.mark.parametrize("place", [0, BYTES // 2, BYTES - 1])
def test_a_flipped_bit_makes_a_row_absent_and_no_other(store: Store, tmp_path: Path, place: int) -> None:
    store.write(np.arange(8), content(list(range(8))))
    path = tmp_path / "rows-00000.bin"
    damaged = bytearray(path.read_bytes())
    damaged[3 * BYTES + place] ^= 4
    path.write_bytes(damaged)
    assert read(store, list(range(8)))[1] == [True] * 3 + [False] + [True] * 4
    assert store.verify() == [3]
    store.write(np.array([3]), content([3]))
    assert store.verify() == []


def test_a_row_in_anothers_place_is_absent(store: Store, tmp_path: Path) -> None:
    store.write(np.array([0, 1]), content([0, 1]))
    data, index = (tmp_path / name for name in ("rows-00000.bin", INDEX))
    one, two = data.read_bytes()[:BYTES], data.read_bytes()[BYTES : 2 * BYTES]
    data.write_bytes(two + one)
    sums = index.read_bytes()
    index.write_bytes(sums[4:8] + sums[:4])
    assert read(store, [0, 1])[1] == [False, False]


@pytest.mark.parametrize("name", ["rows-00000.bin", INDEX])
def test_files_cut_short_or_lost_hold_no_row(store: Store, tmp_path: Path, name: str) -> None:
    store.write(np.arange(4), content(list(range(4))))
    size = (tmp_path / name).stat().st_size
    os.truncate(tmp_path / name, size - 1)
    assert read(store, list(range(4)))[1] == [True, True, True, False]
    os.truncate(tmp_path / name, 0)
    assert read(store, list(range(4)))[1] == [False] * 4
    assert store.verify() == ([0, 1, 2, 3] if name != INDEX else [])


def test_what_rows_cost_is_kept(store: Store, tmp_path: Path) -> None:
    assert store.fill_cost is None
    store.add_fill_cost(2.0, 8)
    store.add_fill_cost(1.0, 4)
    store.write_fill_cost()
    again = Store(tmp_path, BYTES, ROWS)
    assert again.fill_cost is not None
    assert again.fill_cost.seconds_per_row == 0.25
    again.close()
    (tmp_path / "fill_cost.json").write_text("{")
    assert Store(tmp_path, BYTES, ROWS).fill_cost is None


def open_store(path: Path, num_rows: int = ROWS, max_gib: float = 1.0, weights: str = "t", **windows) -> OpenStore:
    teacher = {"teacher": weights, "teacher_precision": "fp32"}
    return OpenStore(path, CONTENTS, identity_of(CONTENTS, teacher, {**WINDOWS, **windows}), num_rows, max_gib)


def test_a_store_is_opened_again_and_by_a_larger_pool(tmp_path: Path) -> None:
    small = open_store(tmp_path, num_rows=10)
    assert small.directory == tmp_path / "masked-hidden1"
    small.write(np.array([9]), content([9], 128))
    small.close()
    large = open_store(tmp_path, num_rows=1000)
    assert read(large, [9, 10, 999])[1] == [True, False, False]
    large.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_seed": 8}, "mask_seed: 7 in the cache, 8 in the recipe"),
        ({"weights": "other"}, "teacher: 't' in the cache, 'other' in the recipe"),
        ({"data": ["xyz x 1"]}, "data: ['abc x 1'] in the cache, ['xyz x 1'] in the recipe"),
    ],
)
def test_another_teacher_text_or_mask_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    open_store(tmp_path).close()
    with pytest.raises(OutputError, match="filled for something else") as caught:
        open_store(tmp_path, **changes)
    assert said in str(caught.value)
    open_store(tmp_path).close()


def test_strange_or_damaged_directories_are_refused_and_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / CONTENTS.name
    directory.mkdir()
    (directory / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        open_store(tmp_path)
    assert not (directory / IDENTITY).exists()
    (directory / "thesis.tex").unlink()
    open_store(tmp_path).close()
    (directory / IDENTITY).write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        open_store(tmp_path)


def test_two_runs_at_once_are_refused_and_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    holder = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'ab'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(600)"
    )
    open_store(tmp_path).close()
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / CONTENTS.name / "lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OutputError, match="in use by another run"):
            open_store(tmp_path)
        other.kill()
    open_store(tmp_path).close()


def test_rows_that_would_not_fit_are_refused_before_the_first_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"teacher\.cache\.max_gib, 0\.001 GiB") as caught:
        open_store(tmp_path, num_rows=10_000, max_gib=0.001)
    assert "0.00123 GiB: 10,000 windows of 128 bytes" in str(caught.value)
    with pytest.raises(OutputError, match=r"room on its disk"):
        open_store(tmp_path, num_rows=10**13, max_gib=1e9)
    open_store(tmp_path).close()


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np, torch
from kd_megatron.errors import OutputError
from kd_megatron.teacher_cache.store import Store

store = Store(Path(sys.argv[1]), 100_000, 100)
try:
    for row in range(100):
        store.write(np.array([row]), torch.full((1, 100_000), row, dtype=torch.uint8))
except OutputError as error:
    print(row, "no space left" in str(error))
whole = [row for row in range(100) if store.read(np.array([row]))[1][0]]
print(whole == list(range(row)), len(whole), store.verify())
"""


def test_a_full_disk_is_a_clear_error_and_keeps_what_is_whole(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system here: {mounted.stderr.strip()}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    first, second = done.stdout.splitlines()
    row = int(first.split()[0])
    assert 5 <= row <= 10
    assert first == f"{row} True"
    assert second == f"True {row} []"


def test_the_identity_is_for_people_to_read(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    found = json.loads((tmp_path / CONTENTS.name / IDENTITY).read_text())
    assert found["row"] == {"hidden1": "bfloat16 [16, 4]"}
    assert found["row_bytes"] == 128


def flip(path: Path, row: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[row * BYTES + 7] ^= 4
    path.write_bytes(damaged)


def test_rows_are_compared_with_their_checksums_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(store_module, "checksum", lambda row, data: compared.append(row) or checksum(row, data))
    store.write(np.arange(4), content(list(range(4))))
    compared.clear()
    assert read(store, [0, 1])[1] == [True, True]
    assert sorted(compared) == [0, 1]
    assert read(store, [0, 1, 2])[1] == [True] * 3
    assert sorted(compared) == [0, 1, 2], "a row that was read before is not compared again"
    store.write(np.array([1]), content([1]))
    compared.clear()
    read(store, [1, 2])
    assert compared == [1], "one that was written anew is"


def test_damaged_rows_are_dropped_by_shares_and_the_others_trusted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(np.arange(8), content(list(range(8))))
    for row in (2, 5):
        flip(tmp_path / "rows-00000.bin", row)
    assert [store.drop_damaged(share, 2) for share in (0, 1)] == [[2], [5]]
    store.trust_present()
    monkeypatch.setattr(store_module, "checksum", lambda row, data: pytest.fail("rows are compared again"))
    assert read(store, list(range(8)))[1] == [True, True, False, True, True, False, True, True]
    assert store.num_present() == 6


def test_a_run_that_opens_a_store_finds_what_was_damaged_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_store(tmp_path)
    first.write(np.arange(4), content(list(range(4)), 128))
    first.close()
    path = first.directory / "rows-00000.bin"
    damaged = bytearray(path.read_bytes())
    damaged[2 * 128 + 5] ^= 1
    path.write_bytes(damaged)
    again = open_store(tmp_path)
    assert "has 1 damaged rows" in " ".join(capsys.readouterr().err.split())
    assert read(again, [0, 1, 2, 3])[1] == [True, True, False, True]
    again.close()


@pytest.mark.parametrize(("cores", "local", "threads"), [(2, "", 4), (96, "", 32), (96, "8", 12), (16, "16", 4)])
def test_a_process_reads_with_its_share_of_the_cores(
    cores: int, local: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert store_module.num_readers() == threads
