"""``inspect``: verify a shard set or a teacher cache and show what is in it."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from kd_megatron.files.manifest import Manifest

HELP = "verify a shard set or a teacher cache and print its statistics"

DESCRIPTION = """
Checks every file of a shard set against its manifest (sizes, sha256, index structure, ids within the vocabulary,
tokenizer) and prints documents, tokens, what cleaning dropped, sources with their licences, and sample windows.
Exit code 3 when a file is missing, torn or altered; the message names it.

Of a teacher cache, every row is read and compared with its checksum. Rows that do not fit are counted; the teacher
makes them again when they are needed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Directory, ``--samples``, ``--length``, ``--seed``, ``--quick``."""
    parser.description = DESCRIPTION
    parser.add_argument("directory", help="such as data/installed_docs, or one directory of a teacher cache")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="windows of text to show (default 3)")
    parser.add_argument("--length", type=int, default=128, metavar="L", help="their length in tokens (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="which windows (default 0)")
    parser.add_argument("--quick", action="store_true", help="check sizes and indices only, not every byte")


def run(args: argparse.Namespace) -> int:
    """Verify (a mismatch raises), then print."""
    from pathlib import Path

    from rich.console import Console

    from data_prep.verify import verify
    from kd_megatron.console import logs
    from kd_megatron.errors import RecipeError
    from kd_megatron.teacher_cache.opening import IDENTITY

    logs.quiet_libraries()
    directory = Path(args.directory)
    for name, least in (("samples", 0), ("length", 3), ("seed", 0)):  # a window has [CLS], [SEP] and a token at least
        if getattr(args, name) < least:
            raise RecipeError(given=f"--{name} {getattr(args, name)}", expected=f"{least} or more")
    if (directory / IDENTITY).is_file():
        return _inspect_cache(directory)
    manifest = verify(directory, full=not args.quick)
    console = Console(highlight=False)
    for table in (_splits(manifest), _statistics(manifest), _sources(manifest)):
        console.print(table)
    tokenizer = f"{manifest.vocab_size:,} tokens, sha256 {manifest.tokenizer_sha256[:16]}, ids as {manifest.dtype}"
    console.print(f"tokenizer: {tokenizer}")
    for title, text in _sample_windows(directory, manifest, args.samples, args.length, args.seed):
        console.rule(title, align="left")
        console.print(text, markup=False)
    checked = "sizes and indices" if args.quick else "every byte"
    console.print(f"[green]verified[/green] {directory}: {checked} of {len(manifest.shards)} shards")
    return 0


def _splits(manifest: "Manifest") -> "Table":
    from rich.table import Table

    table = Table(title=f"{manifest.name} (content {manifest.content_hash()})", title_justify="left")
    table.add_column("split")
    for name in ("shards", "documents", "tokens", "tokens/document", "MB"):
        table.add_column(name, justify="right")
    for split in ("train", "valid"):
        shards = manifest.split(split)
        documents = sum(shard.documents for shard in shards)
        megabytes = sum(shard.bin_bytes for shard in shards) / 1e6
        tokens = manifest.tokens(split)
        mean = tokens / max(documents, 1)
        table.add_row(split, f"{len(shards)}", f"{documents:,}", f"{tokens:,}", f"{mean:,.0f}", f"{megabytes:,.1f}")
    return table


def _statistics(manifest: "Manifest") -> "Table":
    from rich.table import Table

    table = Table(title="cleaning", title_justify="left")
    table.add_column("documents")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    read = max(manifest.statistics.get("documents_read", 0), 1)
    for name, count in manifest.statistics.items():
        if name != "text_bytes":
            table.add_row(name.removeprefix("documents_").replace("_", " "), f"{count:,}", f"{count / read:.1%}")
    tokens = manifest.tokens("train") + manifest.tokens("valid")
    bytes_per_token = manifest.statistics.get("text_bytes", 0) / max(tokens, 1)
    table.add_row("bytes of text per token", f"{bytes_per_token:.2f}", "", style="dim")
    return table


def _sources(manifest: "Manifest") -> "Table":
    from rich.table import Table

    table = Table(title="sources", title_justify="left")
    for name in ("source", "documents read", "licence"):
        table.add_column(name)
    for source in manifest.sources:
        origin = source.get("dataset") or " ".join(source.get("paths") or source.get("packages") or ["all packages"])
        table.add_row(f"{source['type']}: {origin}", f"{source.get('documents_read', 0):,}", str(source["licence"]))
    return table


def _sample_windows(
    directory: "Path", manifest: "Manifest", num_samples: int, length: int, seed: int
) -> list[tuple[str, str]]:
    """Windows at random places, each as (where it is from, its text with the separators in place)."""
    import numpy as np
    from transformers import AutoTokenizer

    from kd_megatron.files.manifest import TOKENIZER

    tokenizer = AutoTokenizer.from_pretrained(directory / TOKENIZER, trust_remote_code=False)
    generator = np.random.default_rng(seed)
    weights = np.array([shard.tokens for shard in manifest.shards], dtype=np.float64)
    if not weights.sum():
        return []
    windows = []
    for index in generator.choice(len(weights), size=num_samples, p=weights / weights.sum()):
        shard = manifest.shards[index]
        tokens = np.memmap(directory / f"{shard.name}.bin", dtype=manifest.dtype, mode="r")
        first = int(generator.integers(0, max(len(tokens) - length, 0) + 1))
        text = str(tokenizer.decode(tokens[first : first + length].astype(np.int64)))
        windows.append((f"{shard.name}, tokens {first:,} to {first + length:,}", text))
    return windows


def _inspect_cache(directory: "Path") -> int:
    """Every row of a teacher cache against its checksum, and what it is a cache of."""
    from rich.console import Console
    from rich.table import Table

    from kd_megatron.teacher_cache.opening import read_identity
    from kd_megatron.teacher_cache.store import INDEX, Store

    identity = read_identity(directory)
    index = directory / INDEX
    num_rows = index.stat().st_size // 4 if index.is_file() else 0
    store = Store(directory, int(identity["row_bytes"]), num_rows)
    torn, present = store.verify(), store.num_present()
    table = Table(title=f"teacher cache {directory}", title_justify="left", show_header=False)
    for name, value in {**identity, **_cache_statistics(store, present - len(torn))}.items():
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


def _cache_statistics(store: Any, num_whole: int) -> dict[str, str]:
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
