"""Checkpoints are complete or absent, also on a full disk, and only good ones of the right module are taken."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_states import Small, small_engine, train
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from kd_megatron.engine import checkpoint
from kd_megatron.engine.build import Engine, on_host
from kd_megatron.engine.saving import CheckpointWriter
from kd_megatron.errors import DataError, OutputError
from kd_megatron.ranks import dist


@pytest.fixture(scope="module")
def engine() -> Engine:
    dist.initialise()
    return small_engine()


def save(engine: Engine, directory: Path, *steps: int, keep: int = 2, for_good: tuple[int, ...] = ()) -> None:
    writer = CheckpointWriter(directory, keep)
    for step in steps:
        writer.save(engine, step, {"at": step}, for_good=step in for_good)
    writer.wait()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def newest_step(directory: Path) -> int | None:
    found = checkpoint.newest(directory)
    return None if found is None else found[1].run["at"]


def test_the_newest_complete_one_is_found_and_old_ones_are_dropped(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5, 10, 15)
    assert names(tmp_path) == ["step_00000010", "step_00000015"]
    assert newest_step(tmp_path) == 15
    assert checkpoint.newest(tmp_path / "nothing") is None


def test_those_that_are_kept_for_good_stay(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 1, 2, 3, 4, 5, keep=1, for_good=(2, 3))
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "torn list", "no list", "short list", "other list"])
def test_a_damaged_one_is_passed_over(engine: Engine, tmp_path: Path, damage: str) -> None:
    save(engine, tmp_path, 5, 10)
    newest = tmp_path / "step_00000010"
    file, listing = newest / "second_moments.safetensors", newest / checkpoint.LIST
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    short = json.loads(listing.read_text())
    del short[file.name]
    actions: dict[str, Callable[[], Any]] = {
        "truncate": lambda: os.truncate(file, 50),
        "flip": lambda: file.write_bytes(content),
        "remove": file.unlink,
        "torn list": lambda: listing.write_text(listing.read_text()[:20]),
        "no list": listing.unlink,
        "short list": lambda: listing.write_text(json.dumps(short)),
        "other list": lambda: listing.write_text("[1, 2]"),
    }
    actions[damage]()
    assert newest_step(tmp_path) == 5


def test_with_no_good_one_left_there_is_none(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(engine, tmp_path, 5)
    (tmp_path / "step_00000005" / checkpoint.STATE).write_text("{}")
    assert checkpoint.newest(tmp_path) is None
    assert "the run starts from its beginning" in capsys.readouterr().err.replace("\n", " ")


def test_what_was_passed_over_does_not_crowd_out_good_ones(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5, 10)
    os.truncate(tmp_path / "step_00000010" / "weights.safetensors", 50)
    checkpoint.tidy(tmp_path, step=5)
    save(engine, tmp_path, 7, keep=1)
    assert names(tmp_path) == ["passed_over_step_00000010", "step_00000007"]
    assert newest_step(tmp_path) == 7


def test_what_dead_runs_left_is_no_checkpoint_and_is_removed(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5)
    for unfinished in (checkpoint.WRITING, checkpoint.REMOVING):
        shutil.copytree(tmp_path / "step_00000005", tmp_path / f"{unfinished}step_00000010")
    assert newest_step(tmp_path) == 5
    checkpoint.tidy(tmp_path, step=5)
    assert names(tmp_path) == ["step_00000005"]


def test_it_is_written_while_training_goes_on_and_is_of_its_own_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.initialise()
    engine, go, write = small_engine(), threading.Event(), checkpoint.write
    train(engine, 0)
    before = engine.full_weights()
    monkeypatch.setattr(checkpoint, "write", lambda *given: (go.wait(60), write(*given)))
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save(engine, 3, {})
    train(engine, 3)
    assert checkpoint.newest(tmp_path) is None
    go.set()
    writer.wait()
    written = load_file(tmp_path / "step_00000003" / "weights.safetensors")
    assert all(torch.equal(written[name], before[name]) for name in before)
    assert not torch.equal(engine.full_weights()["scale"], before["scale"])


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


def test_a_full_disk_is_a_clear_error_and_keeps_the_one_before(engine: Engine, small_disk: Path) -> None:
    save(engine, small_disk, 5)
    writer = CheckpointWriter(small_disk, keep=2)
    writer.save(small_engine(module=Small(0, width=801)), 10, {})
    writer.close()
    assert writer.failed
    with pytest.raises(OutputError, match=r"no space left on the disk while writing .*step_00000010"):
        writer.save(engine, 15, {})
    assert names(small_disk) == ["step_00000005"]
    assert newest_step(small_disk) == 5
    save(engine, small_disk, 10)  # and there is room again


def test_a_disk_that_refuses_is_a_clear_error(engine: Engine, small_disk: Path) -> None:
    save(engine, small_disk, 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"step_00000010 could not be written: OSError: .*Read-only file system"):
        save(engine, small_disk, 10)
    assert newest_step(small_disk) == 5


def test_the_list_names_every_file(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5)
    path = tmp_path / "step_00000005"
    assert set(json.loads((path / checkpoint.LIST).read_text())) == {*names(path)} - {checkpoint.LIST}


def rewritten(path: Path, **changes: Any) -> None:
    """Change the state of the checkpoint at ``path``, and its list so that it fits."""
    about = json.loads((path / checkpoint.STATE).read_text())
    (path / checkpoint.STATE).write_text(json.dumps(about | changes))
    listing = json.loads((path / checkpoint.LIST).read_text())
    file = path / checkpoint.STATE
    listing[file.name] = {"bytes": file.stat().st_size, "sha256": checkpoint.file_sha256(file)}
    (path / checkpoint.LIST).write_text(json.dumps(listing))


def test_one_of_a_later_format_is_refused(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5)
    rewritten(tmp_path / "step_00000005", format=2)
    with pytest.raises(DataError, match="has format 2"):
        checkpoint.newest(tmp_path)
    rewritten(tmp_path / "step_00000005", format=1, parameters="none")
    with pytest.raises(DataError, match=r"not a checkpoint's state(.|\n)*parameters"):
        checkpoint.newest(tmp_path)


def test_one_in_deepspeeds_format_is_refused_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "step_00000005" / "engine").mkdir(parents=True)
    with pytest.raises(DataError, match=r"DeepSpeed's own format(.|\n)*begin it anew"):
        checkpoint.newest(tmp_path)


def test_one_of_another_module_is_refused(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5)
    thawed = Small(0)
    thawed.frozen.bias.requires_grad_(True)
    for module, words in ((Small(0, width=11), "first.weight is .11, 7. here"), (thawed, "frozen.bias is trained")):
        other = small_engine(module=module)
        found = checkpoint.newest(tmp_path)
        assert found is not None
        with pytest.raises(DataError, match=words):
            checkpoint.load(other, *found)


def test_tensors_that_are_not_what_the_state_says_are_refused(engine: Engine, tmp_path: Path) -> None:
    save(engine, tmp_path, 5)
    path = tmp_path / "step_00000005"
    shutil.copy(path / "first_moments.safetensors", path / "weights.safetensors")
    found = path, checkpoint.About.model_validate_json((path / checkpoint.STATE).read_text())
    with pytest.raises(DataError, match=r"weights.safetensors does not hold the tensors"):
        checkpoint.load(engine, *found)
    (path / "weights.safetensors").write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(DataError, match=r"weights.safetensors cannot be read"):
        checkpoint.load(engine, *found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_gathered_is_a_copy_of_its_own_made_once(dtype: torch.dtype) -> None:
    values = torch.randn(4, 3, dtype=torch.float32).to(dtype).t().requires_grad_()
    with Copies() as copies:
        taken = on_host(values)
    assert taken.dtype == torch.float32
    assert torch.equal(taken, values.detach().float())
    assert taken.data_ptr() != values.data_ptr()
    assert not taken.requires_grad
    assert copies.made == 1


class Copies(TorchDispatchMode):
    """Counts the operations that copy numbers."""

    made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += function.overloadpacket.__name__ in ("copy_", "_to_copy", "clone")
        return function(*args, **(kwargs or {}))
