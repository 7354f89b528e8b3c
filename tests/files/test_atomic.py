"""What is written aside appears whole, or the old stays and nothing else is left."""

from pathlib import Path

import pytest

from kd_megatron.files import atomic


def write_half(path: Path) -> None:
    path.write_text("ne")
    raise OSError("full")


@pytest.mark.parametrize("by_many", [False, True])
def test_a_file_appears_whole(tmp_path: Path, by_many: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic.new_file(path, by_many) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("by_many", [False, True])
def test_after_an_error_the_old_file_stays(tmp_path: Path, by_many: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic.new_file(path, by_many) as aside:
        write_half(aside)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").touch()
    atomic.partial(path).mkdir()
    (atomic.partial(path) / "of_a_killed_process").touch()
    with atomic.new_directory(path) as aside:
        assert not list(aside.iterdir())
        (aside / "new").touch()
        assert (path / "old").exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_directory_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="full"), atomic.new_directory(path) as aside:
        write_half(aside / "new")
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
