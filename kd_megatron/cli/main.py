"""The command line: picks the command, and turns every error a user can act on into one message and an exit code.

A command is a module of this package with ``HELP``, ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
Only the module of the command that runs is imported, and heavy libraries only inside its ``run``.
"""

import argparse
import importlib
import os
import re
import signal
import sys
import time
from types import ModuleType
from typing import NoReturn

from kd_megatron import redact
from kd_megatron.cli import checkout
from kd_megatron.errors import KdError, RecipeError, disk_full_is_clear, nearest
from kd_megatron.launch.node import see_devices
from kd_megatron.ranks import signals
from kd_megatron.ranks.process import exit_process, keep_freed_memory, say_error

COMMANDS = (
    "prepare", "plan", "calibrate", "sweep", "pretrain", "finetune", "study", "report", "prune", "bench", "inspect",
    "inputs", "preflight",
)  # fmt: skip
CHECKOUT_COMMANDS = ("bench",)  # of the top-level package benchmarks
LAUNCHER_COMMANDS = ("demo", "test")  # of launch.sh alone: they need the repository, not only the package

LOCAL_RANK = re.compile(r"--local[-_]rank=\d+")

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
RANK_PATIENCE_SECONDS = 3.0


class Parser(argparse.ArgumentParser):
    """Raises `RecipeError` where argparse prints its usage and exits, and names the nearest known option."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as an error with the usage line."""
        raise RecipeError(
            given=f"{self.prog}: {message}",
            expected=" ".join(self.format_usage().removeprefix("usage: ").split()),
            fix=f"see {self.prog} --help",
        )

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse options and positionals in any order (``RECIPE --arm minilm budget.hours=0.1``)."""
        namespace, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(f"unknown argument {unknown[0]!r}; {nearest(unknown[0].partition('=')[0], known)}")
        return namespace


def program() -> NoReturn:
    """The program ``kd-megatron``: `main`, then the end of the process."""
    sys.excepthook = redact.print_exception
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of lost connections our own message tells
    keep_freed_memory()
    see_devices()
    signals.install()
    try:
        exit_code = main()
    except Exception as error:  # a bug
        redact.print_exception(type(error), error, error.__traceback__)
        exit_code = KdError.exit_code
    exit_process(exit_code)


def main(arguments: list[str] | None = None) -> int:
    """Run ``arguments`` (``sys.argv`` without the program when None) and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        with disk_full_is_clear("the output of this command"):
            exit_code = dispatch(arguments)
            sys.stdout.flush()  # here, so that a closed pipe or a full disk is met inside this block
            return exit_code
    except KdError as error:
        if debug:
            redact.print_exception(type(error), error, error.__traceback__)
        report_error(str(error), error.said)
        return error.exit_code
    except signals.Stopped as stopped:
        report_error(str(stopped.as_error()))
        return stopped.as_error().exit_code
    except KeyboardInterrupt as error:
        if debug:
            redact.print_exception(type(error), error, error.__traceback__)
        report_error("interrupted; the same command continues from the last checkpoint or finished part")
        return signals.EXIT_CTRL_C
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def dispatch(arguments: list[str]) -> int:
    """Run the command that ``arguments`` begin with (``--debug``, a launcher's ``--local_rank`` may precede)."""
    arguments = without_local_rank(arguments)
    if arguments[:1] == ["--debug"]:
        arguments = [*arguments[1:], "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help", "--debug"):
        print(overview())
        return 0
    command, *rest = arguments
    module = command_module(command)
    parser = Parser(prog=f"{program_name()} {command}", description=module.__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    namespace = parser.parse(rest)
    from kd_megatron.console import logs

    logs.quiet_libraries()
    return int(module.run(namespace))


def without_local_rank(arguments: list[str]) -> list[str]:
    """``arguments`` without the ``--local_rank=N`` that launchers put first; they say it in ``LOCAL_RANK`` as well.

    deepspeed does unless it is given ``--no_local_rank``, ``torch.distributed.launch`` with ``--local-rank``.
    """
    if arguments and LOCAL_RANK.fullmatch(arguments[0]):
        os.environ.setdefault("LOCAL_RANK", arguments[0].partition("=")[2])
        return arguments[1:]
    return arguments


def command_module(command: str) -> ModuleType:
    """The module of ``command``. Raises `RecipeError` with the nearest known name when there is none."""
    if command in COMMANDS:
        return _module(command)
    if command in LAUNCHER_COMMANDS:
        raise RecipeError(
            given=f"{command!r} is a command of launch.sh", fix=f"run ./launch.sh {command} in the repository"
        )
    raise RecipeError(
        given=f"unknown command {command!r}; {nearest(command, COMMANDS + LAUNCHER_COMMANDS)}",
        expected=f"one of {', '.join(COMMANDS)}",
        fix=f"see {program_name()} --help",
    )


def _module(command: str) -> ModuleType:
    if command in CHECKOUT_COMMANDS:
        return checkout.module(f"cli.{command}")
    return importlib.import_module(f"kd_megatron.cli.{command}")


def overview() -> str:
    """The text of ``--help``: one line for each command."""
    lines = [
        f"  {name:<10}{_module(name).HELP}" for name in COMMANDS if name not in CHECKOUT_COMMANDS or checkout.is_here()
    ]
    return "\n".join(
        [
            f"usage: {program_name()} COMMAND [ARGUMENTS] [--debug]",
            "",
            "Pretrain or distil a small encoder under a fixed compute budget, and find out which is better.",
            "",
            *lines,
            "",
            f"'{program_name()} COMMAND --help' tells more. Exit codes: docs/exit_codes.md",
        ]
    )


def program_name() -> str:
    """What the user typed: ``./launch.sh`` sets ``KD_PROGRAM`` so that usage lines show itself."""
    return os.environ.get("KD_PROGRAM", "kd-megatron")


def report_error(message: str, said: bool | None = None) -> None:
    """Print ``message`` on stderr: once when all ranks fail alike, with the rank when one fails alone.

    Where the ranks could not agree who speaks (``said`` is None), one other than 0 waits first: when rank 0 fails too,
    the launcher ends this one during the wait.
    """
    if said is None and os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_PATIENCE_SECONDS)
    if not said:
        say_error(message)


if __name__ == "__main__":
    program()
