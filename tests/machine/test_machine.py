"""What a run records of the code it ran with."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_megatron.machine import facts


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, as if it were this one."""
    (tmp_path / "kd_megatron").mkdir()
    (tmp_path / "kd_megatron" / "step.py").write_text("RATE = 1\n")
    (tmp_path / "README.md").write_text("words\n")
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(facts, "ROOT", tmp_path)
    return tmp_path


def anew(found: Callable[[], str | bool | None]) -> str | bool | None:
    """What a process that starts now would record."""
    return found.__wrapped__()  # type: ignore[attr-defined, no-any-return]


def test_two_uncommitted_states_of_the_code_differ(checkout: Path) -> None:
    states = [anew(facts.uncommitted_hash)]
    for rate in (2, 3):
        (checkout / "kd_megatron" / "step.py").write_text(f"RATE = {rate}\n")
        assert anew(facts.uncommitted_changes) is True
        states.append(anew(facts.uncommitted_hash))
    (checkout / "kd_megatron" / "new.py").write_text("NEW = 1\n")
    states.append(anew(facts.uncommitted_hash))
    (checkout / "README.md").write_text("other words\n")
    assert states[0] is None
    assert len(set(states)) == 4
    assert anew(facts.uncommitted_hash) == states[-1]  # no number depends on the words


def test_words_that_were_edited_are_no_change_of_the_code(checkout: Path) -> None:
    (checkout / "README.md").write_text("other words\n")
    assert anew(facts.uncommitted_changes) is False


def test_a_process_records_the_code_that_it_began_with(checkout: Path) -> None:
    for found in (facts.commit, facts.uncommitted_changes, facts.uncommitted_hash):
        assert hasattr(found, "cache_info")
    assert {"commit", "uncommitted_changes", "uncommitted_hash"} <= facts.facts(()).keys()
