"""Checkpoints are complete or absent, also on a full disk, and only good ones are taken."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_megatron import dist
from kd_megatron.engine import checkpoint
from kd_megatron.errors import OutputError


class Writer:
    """Writes what DeepSpeed would: a file by torch.save. The protocol around it is what is tested here."""

    def __init__(self, num_values: int = 1000) -> None:
        self.values = torch.arange(num_values)

    def save_checkpoint(self, directory: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        (Path(directory) / tag).mkdir()
        torch.save(self.values, Path(directory) / tag / "weights.pt")


def engine(num_values: int = 1000) -> Any:
    dist.initialise()
    return SimpleNamespace(deepspeed=Writer(num_values))


def test_the_newest_complete_one_is_found_and_old_ones_are_dropped(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.save(engine(), tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000015"]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000015", {"step": 15})
    assert checkpoint.newest(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "torn list", "no list"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    for step in (5, 10):
        checkpoint.save(engine(), tmp_path, step, {"step": step}, keep=2)
    newest = tmp_path / "step_00000010"
    file, listing = newest / "engine" / "weights.pt", newest / checkpoint.LIST
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    actions = {
        "truncate": lambda: os.truncate(file, 50),
        "flip": lambda: file.write_bytes(content),
        "remove": file.unlink,
        "torn list": lambda: listing.write_text(listing.read_text()[:20]),
        "no list": listing.unlink,
    }
    actions[damage]()
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000005", {"step": 5})


def test_what_was_being_written_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoint.save(engine(), tmp_path, 5, {"step": 5}, keep=2)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / ".writing_step_00000010")
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000005", {"step": 5})
    checkpoint.save(engine(), tmp_path, 10, {"step": 10}, keep=2)
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000010", {"step": 10})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_clear_error_and_keeps_the_one_before(small_disk: Path) -> None:
    checkpoint.save(engine(), small_disk, 5, {"step": 5}, keep=2)
    with pytest.raises(OutputError, match=r"no space left on the disk while writing .*step_00000010"):
        checkpoint.save(engine(num_values=500_000), small_disk, 10, {"step": 10}, keep=2)
    assert [path.name for path in small_disk.iterdir()] == ["step_00000005"]
    assert checkpoint.newest(small_disk) == (small_disk / "step_00000005", {"step": 5})
    checkpoint.save(engine(), small_disk, 10, {"step": 10}, keep=2)  # and there is room again


def test_the_list_names_every_file(tmp_path: Path) -> None:
    path = checkpoint.save(engine(), tmp_path, 5, {"step": 5}, keep=2)
    listing = json.loads((path / checkpoint.LIST).read_text())
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert set(listing) == files - {checkpoint.LIST}
