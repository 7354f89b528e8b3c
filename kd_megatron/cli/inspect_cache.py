"""``inspect`` of a teacher cache: every row against its checksum, and what it is a cache of."""

from pathlib import Path
from typing import Any

from kd_megatron.teacher_cache.identity import IDENTITY


def is_cache(directory: Path) -> bool:
    """Whether ``directory`` is one of a teacher cache's."""
    return (directory / IDENTITY).is_file()


def run(directory: Path) -> int:
    """Read every row and print what there is. Raises `OutputError` when the directory's identity cannot be read."""
    from rich.console import Console
    from rich.table import Table

    from kd_megatron.teacher_cache import identity as identities
    from kd_megatron.teacher_cache.store import INDEX, Store

    identity = identities.read(directory)
    index = directory / INDEX
    num_rows = index.stat().st_size // 4 if index.is_file() else 0
    store = Store(directory, int(identity["row_bytes"]), num_rows)
    torn, present = store.verify(), store.num_present()
    table = Table(title=f"teacher cache {directory}", title_justify="left", show_header=False)
    for name, value in {**identity, **_statistics(store, present - len(torn))}.items():
        table.add_row(name, _in_words(value))
    store.close()
    console = Console(highlight=False)
    console.print(table)
    if torn:
        console.print(
            f"[yellow]{len(torn):,} rows do not fit their checksum[/yellow] (such as row {torn[0]:,}): they count as "
            "absent, and the teacher makes them again when they are needed"
        )
    console.print(f"[green]verified[/green] {directory}: every byte of {present - len(torn):,} rows")
    return 0


def _statistics(store: Any, num_whole: int) -> dict[str, str]:
    share = num_whole / max(1, store.num_rows)
    said = {
        "windows kept": f"{num_whole:,} of {store.num_rows:,} ({share:.1%})",
        "on disk": f"{store.disk_bytes() / 2**20:,.1f} MiB",
    }
    if store.fill_cost:
        cost = store.fill_cost
        said["cost"] = f"{cost.seconds:,.1f} s for {cost.rows:,} windows, {1000 * cost.seconds_per_row:.3g} ms each"
    return said


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
