"""The short form of `fuzz_recipes`; ``./launch.sh test -m long`` does all 500 cases."""

import os
import signal
from pathlib import Path

import pytest
from reliability import fuzz_recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True, raising=False)
    yield
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert os.getcwd() == str(ROOT)


def run(cases: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = fuzz_recipes.main(["--cases", str(cases)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert f"{cases} cases, 0 failed" in output


def test_mutated_recipes_are_refused_or_mean_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    run(80, capsys)


@pytest.mark.long
def test_five_hundred_mutated_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    run(500, capsys)


@pytest.mark.parametrize(
    ("given", "read"),
    [({"a": "yes"}, {"a": True}), ({"a": True}, {"a": 1}), ({"a": 5}, {"a": "5"}), ({"a": 1}, {}), ([1, 2], [1])],
)
def test_the_judge_sees_what_is_dropped_or_altered(given, read) -> None:
    with pytest.raises(AssertionError):
        fuzz_recipes.require_held(given, read, "")


@pytest.mark.parametrize(("given", "read"), [({"a": 3.0}, {"a": 3, "b": 1}), ([1], (1.0,)), ({"a": None}, {"a": None})])
def test_the_judge_lets_equal_values_pass(given, read) -> None:
    fuzz_recipes.require_held(given, read, "")
