"""Documents in files: .txt, .jsonl and .parquet, plain or compressed with gzip, xz or zstd.

A .jsonl line or a .parquet row is one document. A .txt file is one document up to `TEXT_CUT_CHARACTERS`; a longer
one is cut at the next blank line, or after twice that at the next end of a line or the last white space of a line that
goes on, so that no file has to fit in memory.
Whatever cannot be read is a `DataError` naming the file and, where there is one, the line: nothing is skipped silently.
"""

import codecs
import glob
import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from kd_megatron.errors import DataError, nearest
from kd_megatron.recipe import paths

KINDS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
TEXT_CUT_CHARACTERS = 200_000
_PIECE_BYTES = 1 << 16  # of a line at once: a long one may be cut between them
_KNOWN = f"{', '.join(KINDS)}, plain or with {', '.join(COMPRESSIONS)}"


def expand(given_paths: list[str]) -> list[Path]:
    """The files behind files, directories (searched recursively) and globs: sorted within each, none twice.

    Raises:
        DataError: a path does not exist, a glob or directory holds no file of a known kind, or a file that is
            named is of an unknown kind or empty.
    """
    found: dict[Path, None] = {}
    for given in given_paths:
        path = Path(paths.expand(given))
        if path.is_file():
            matches = [path]
            _kind(path)
        elif path.is_dir():
            matches = [child for child in sorted(path.rglob("*")) if child.is_file() and _is_known(child)]
        else:
            matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if _is_known(Path(name))]
        if not matches:
            raise DataError(
                given=f"corpus path {given} " + ("holds no corpus file" if path.is_dir() else "does not exist"),
                expected=f"a file, directory or glob with files of kind {_KNOWN}",
                fix=paths.how_to_get(given)
                or "correct 'paths' of the source (relative paths start at the directory you run from)",
            )
        found.update(dict.fromkeys(matches))
    for path in found:
        if path.stat().st_size == 0:
            raise _empty(path)
    return list(found)


def documents(path: Path, text_key: str) -> Iterator[tuple[str, int]]:
    """The documents of one file, each with how many bytes of the file on disk were read so far.

    Raises:
        DataError: naming the file and line: torn or damaged, binary, not UTF-8, without ``text_key``, or empty.
    """
    kind, compression = _kind(path)
    reader = {".txt": _text, ".jsonl": _jsonl, ".parquet": _parquet}[kind]
    is_empty = True
    try:
        with path.open("rb") as raw, _decompressed(raw, compression) as stream:
            for document in reader(stream, path, text_key):
                is_empty = False
                yield document, raw.tell()
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's fault, not the content's
            raise
        raise _damaged(path, error) from error
    if is_empty:
        raise _empty(path)


def _text(stream: IO[bytes], path: Path, text_key: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    lines: list[str] = []
    num_characters, line_number = 0, 1
    while piece := stream.readline(_PIECE_BYTES):
        line = _decode(decoder, piece, path, line_number)
        line_number += piece.endswith(b"\n")
        lines.append(line)
        num_characters += len(line)
        is_blank = not line.strip()
        if num_characters >= 2 * TEXT_CUT_CHARACTERS or (num_characters >= TEXT_CUT_CHARACTERS and is_blank):
            text = "".join(lines)
            end = len(text) if line.endswith("\n") else 1 + max(map(text.rfind, " \t\n")) or len(text)
            yield text[:end]
            lines, num_characters = [text[end:]], len(text) - end
    _decode(decoder, b"", path, line_number)
    if (rest := "".join(lines)).strip():
        yield rest


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path, line_number: int) -> str:
    if b"\0" in piece:
        raise DataError(
            given=f"{path}, line {line_number}: binary data (a NUL byte)",
            expected="text in UTF-8",
            fix="remove the file from 'paths', or convert it to text",
        )
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            given=f"{path}, line {line_number}: not UTF-8 (byte 0x{byte:02x}: {error.reason})",
            expected="text in UTF-8",
            fix=f"convert it, for instance: iconv -f latin1 -t utf-8 {path.name}",
        ) from error


def _jsonl(stream: IO[bytes], path: Path, text_key: str) -> Iterator[str]:
    for line_number, line in enumerate(stream, start=1):
        text = _decode(codecs.getincrementaldecoder("utf-8-sig")(), line, path, line_number)
        if not text.strip():
            continue
        where = f"{path}, line {line_number}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, very deep
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                given=f"{where}: not JSON ({why})",
                expected="one complete JSON object on each line",
                fix="the line may be torn by an interrupted download or copy: fetch the file again",
            ) from error
        yield field(row, text_key, where)


def _parquet(stream: IO[bytes], path: Path, text_key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _seekable(stream, path) as seekable:
            file = pyarrow.parquet.ParquetFile(seekable)
            if text_key not in file.schema_arrow.names:
                raise _no_key(str(path), text_key, file.schema_arrow.names)
            row_number = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_key]):
                for text in batch.column(0).to_pylist():
                    row_number += 1
                    yield field({text_key: text}, text_key, f"{path}, row {row_number}")
    except pyarrow.ArrowInvalid as error:
        raise _damaged(path, error) from error


def field(row: Any, text_key: str, where: str) -> str:
    """The text of one row. Raises `DataError` at ``where`` when the row has none."""
    if not isinstance(row, dict):
        raise DataError(given=f"{where}: a {type(row).__name__}", expected=f"an object with the field {text_key!r}")
    if text_key not in row:
        raise _no_key(where, text_key, list(row))
    if not isinstance(row[text_key], str):
        raise DataError(
            given=f"{where}: {text_key!r} is {type(row[text_key]).__name__}",
            expected="a string",
            fix="name the field that holds the text in 'text_key' of the source, or remove the row",
        )
    return cast(str, row[text_key])


@contextmanager
def _decompressed(raw: IO[bytes], compression: str) -> Iterator[IO[bytes]]:
    """The content of ``raw``, seekable when it is not compressed."""
    if compression == ".gz":
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast(IO[bytes], stream)
    elif compression == ".xz":
        with lzma.LZMAFile(raw) as stream:
            yield cast(IO[bytes], stream)
    elif compression == ".zst":
        import pyarrow

        # not zstandard's reader: that one takes a truncated file for a complete one
        yield cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")))
    else:
        yield raw


@contextmanager
def _seekable(stream: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Parquet is read from its end: a compressed one goes to a temporary file first."""
    if path.suffix not in COMPRESSIONS:
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield copy


def _is_known(path: Path) -> bool:
    try:
        return path.is_file() and bool(_kind(path))
    except DataError:
        return False


def _kind(path: Path) -> tuple[str, str]:
    """The kind and compression (or ``""``) by the file's name."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    kind = Path(path.name.removesuffix(compression)).suffix if compression else path.suffix
    if kind not in KINDS:
        raise DataError(
            given=f"{path} is of an unknown kind ({path.suffix or 'no suffix'})",
            expected=_KNOWN,
            fix="convert it, or give it the suffix of what it holds",
        )
    return kind, compression


def _empty(path: Path) -> DataError:
    return DataError(given=f"{path} is empty", expected="at least one document", fix="remove it or fetch it again")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        given=f"{path} is damaged: {error}",
        expected="a complete file",
        fix="it may be cut short or have the wrong suffix: fetch it again",
    )


def _no_key(where: str, text_key: str, known: list[str]) -> DataError:
    return DataError(
        given=f"{where}: no field {text_key!r}; {nearest(text_key, known)}",
        expected="the text of the document in that field",
        fix="name the field that holds the text in 'text_key' of the source",
    )
