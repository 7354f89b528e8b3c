"""The dispatch: exit codes, one message and no traceback, hints, instant help."""

import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kd_megatron import errors
from kd_megatron.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
ERROR_CLASSES = [errors.KdError, *errors.KdError.__subclasses__()]
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "megatron", "matplotlib", "sklearn", "pyarrow", "scipy")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """A command named ``bench`` whose ``run`` a test chooses."""
    module = ModuleType("benchmarks.cli.bench", "Does what the test says.")
    module.HELP = "help"
    module.add_arguments = lambda parser: parser.add_argument("words", nargs="*") and parser.add_argument("--arm")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def raiser(error: BaseException):
    def run(_arguments) -> int:
        raise error

    return run


@pytest.mark.parametrize("error_class", ERROR_CLASSES)
def test_every_error_is_one_message_and_its_exit_code(command, capsys, error_class):
    command.run = raiser(error_class("3 apples", "4 apples", "buy one"))
    assert cli.main(["bench"]) == error_class.exit_code
    assert capsys.readouterr().err == "error: 3 apples\n  expected: 4 apples\n  to fix: buy one\n"


@pytest.mark.parametrize("arguments", [["--debug", "bench"], ["bench", "--debug"]])
def test_debug_shows_the_traceback(command, capsys, arguments):
    command.run = raiser(errors.DataError("torn"))
    assert cli.main(arguments) == errors.DataError.exit_code
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(command, capsys):
    command.run = raiser(KeyboardInterrupt())
    assert cli.main(["bench"]) == cli.signals.EXIT_CTRL_C == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_an_output_error(command, capsys):
    command.run = raiser(OSError(errno.ENOSPC, "No space left on device"))
    assert cli.main(["bench"]) == errors.OutputError.exit_code
    assert "no space left on the disk" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_user_error(command):
    command.run = raiser(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["bench"])


def test_the_exit_code_of_a_command_is_passed_on(command):
    command.run = lambda _arguments: 9
    assert cli.main(["bench"]) == 9


def test_options_and_overrides_come_in_any_order(command):
    seen = []
    command.run = lambda arguments: seen.append((arguments.words, arguments.arm)) or 0
    assert cli.main(["bench", "a.yaml", "--arm", "minilm", "budget.hours=0.1"]) == 0
    assert seen == [(["a.yaml", "budget.hours=0.1"], "minilm")]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["prepar"], "did you mean 'prepare'?"),
        (["stduy", "x.yaml"], "did you mean 'study'?"),
        (["nothing-like-it"], "known: "),
        (["demo"], "./launch.sh demo"),
        (["bench", "--amr", "x"], "did you mean '--arm'?"),
        (["bench", "--arm"], "expected one argument"),
    ],
)
def test_a_wrong_command_line_gets_a_hint_and_exit_code_2(command, capsys, arguments, hint):
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert hint in message
    assert "Traceback" not in message


def test_other_ranks_are_silent_when_rank_0_fails_alike(command, capsys, monkeypatch):
    """The launcher ends a rank that waits; one that fails alone speaks after the wait, with its number."""
    waits = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    command.run = raiser(errors.DataError("shard 7 is torn"))
    assert cli.main(["bench"]) == errors.DataError.exit_code
    assert waits == [cli.RANK_PATIENCE_SECONDS]
    assert capsys.readouterr().err == "[rank 3] error: shard 7 is torn\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command_is_instant(name):
    """No heavy library is imported to show help: time itself is noise on a shared machine."""
    program = (
        "import sys; from kd_megatron.cli.main import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    *help_lines, imported = done.stdout.splitlines()
    assert help_lines[0].startswith(f"usage: kd-megatron {name}")
    assert any("--debug" in line for line in help_lines)
    assert imported == "[]"


def test_the_overview_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


def test_as_a_module_without_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "kd_megatron", "plan", "no/such.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe no/such.yaml does not exist")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_silent():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m kd_megatron --help | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
