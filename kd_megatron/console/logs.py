"""What a person and a machine see of a run: one console, ``metrics.jsonl``, TensorBoard. Rank 0 alone writes."""

import os
import sys
import warnings

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kd_megatron.ranks import process
from kd_megatron.redact import redact

console = Console(stderr=True, highlight=False, soft_wrap=True)
_WARNING = "[yellow]warning:[/yellow]"


def say(message: str) -> None:
    """Print one line on rank 0."""
    if process.is_main():
        console.print(redact(message))


def warn(message: str) -> None:
    """Print one warning on rank 0."""
    say(f"{_WARNING} {message}")


def warn_of_own(message: str) -> None:
    """Print one warning of what this rank alone has seen, whichever it is."""
    console.print(redact(f"{_WARNING} {'' if process.is_main() else f'rank {process.rank()}: '}{message}"))


def progress_bar(unit: str = "") -> Progress:
    """A progress bar with count, elapsed and remaining time; silent on ranks other than 0."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=console.is_terminal,  # elsewhere its last state is written, once; no thread is needed for that
        disable=not process.is_main(),
    )


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column is names and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def quiet_libraries() -> None:
    """Silence the start-up chatter of the libraries; their errors still come through."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:  # it has read the variable already; a command without it need not wait for it
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(megatron|deepspeed|torch\.distributed).*")
    for name in ("DeepSpeed", "deepspeed", "megatron", "transformers", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
