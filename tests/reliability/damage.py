"""Ways in which the files of a shard set go wrong. Each takes a random generator and a case; returns what it damaged.

What it returns are the names of which an error must mention one, ``None`` where nothing readable changed in meaning.
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_megatron.data.index import MEMORY
from kd_megatron.files.manifest import MANIFEST, TOKENIZER, Manifest, write_manifest


@dataclass(frozen=True)
class Case:
    """The set that is damaged, and intact ones to take foreign files from."""

    directory: Path
    others: list[Path]


Damage = Callable[[random.Random, Case], set[str]]
NUMBERS = [0, 1, -1, 7, 2**31, 2**63, -(2**63), 2**64, 10**400, 1e308, -0.5, float("nan"), float("inf")]
VALUES: list[Any] = [
    *NUMBERS,
    None,
    True,
    "",
    "x",
    "train-00000",
    "../../etc/passwd",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
]


def data_files(directory: Path) -> list[Path]:
    """Everything a reader reads."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MEMORY)


def _shard_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.bin")) + sorted(directory.glob("*.idx"))


def flip_bits(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(data_files(case.directory))
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 30])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return _rewrite(path, content)


def truncate(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(data_files(case.directory))
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, 33, 34, size // 2, size - 2, size - 1, rng.randrange(size)]) % size)
    return {path.name}


def append(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(data_files(case.directory))
    return _rewrite(path, path.read_bytes() + rng.randbytes(rng.choice([1, 2, 4, 8, 1000])))


def grow(rng: random.Random, case: Case) -> set[str]:
    """A terabyte of zeros, sparse: read into memory, it would end the process."""
    path = rng.choice([*data_files(case.directory), case.directory / MEMORY])
    path.touch()
    os.truncate(path, path.stat().st_size + 2**40)
    return {path.name}


def zero_fill(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(data_files(case.directory))
    content = bytearray(path.read_bytes())
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.choice([1, 2, 64, 512, 4096, len(content)]))
    content[first:last] = bytes(last - first)
    return _rewrite(path, content)


def overwrite(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(data_files(case.directory))
    content = bytearray(path.read_bytes())
    first = rng.randrange(len(content))
    piece = rng.randbytes(rng.choice([1, 2, 8, 100]))
    content[first : first + len(piece)] = piece
    return _rewrite(path, content)


def swap_within(rng: random.Random, case: Case) -> set[str]:
    """Two files of one kind change places: both kinds, or one alone."""
    one, two = rng.sample(sorted({path.stem for path in case.directory.glob("*.bin")}), 2)
    for kind in rng.choice([("bin",), ("idx",), ("bin", "idx")]):
        paths = case.directory / f"{one}.{kind}", case.directory / f"{two}.{kind}"
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.write_bytes(content)
    return {one, two}


def swap_between_sets(rng: random.Random, case: Case) -> set[str]:
    other = rng.choice(case.others)
    path = rng.choice(data_files(case.directory))
    theirs = other / path.relative_to(case.directory)
    if path.suffix in (".bin", ".idx"):
        theirs = rng.choice([file for file in _shard_files(other) if file.suffix == path.suffix])
    return _rewrite(path, theirs.read_bytes()) | (_names(case) if path.name == MANIFEST else set())


def swap_manifest_and_tokenizer(rng: random.Random, case: Case) -> set[str]:
    other = rng.choice(case.others)
    for name in rng.choice([(MANIFEST,), (TOKENIZER,), (MANIFEST, TOKENIZER)]):
        if name == MANIFEST:
            shutil.copy(other / name, case.directory / name)
        else:
            shutil.copytree(other / name, case.directory / name, dirs_exist_ok=True)
    return _names(case)


def remove(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice([*data_files(case.directory), case.directory / TOKENIZER])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {path.name}


def another_kind_of_file(rng: random.Random, case: Case) -> set[str]:
    """A directory, a pipe that nobody writes to, a link to nowhere or to itself: opening one must not wait for ever."""
    path = rng.choice([*data_files(case.directory), case.directory / MEMORY])
    path.unlink(missing_ok=True)
    make = rng.choice(
        [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere"), lambda: path.symlink_to(path)]
    )
    make()
    return {path.name}


def add_a_file(rng: random.Random, case: Case) -> set[str]:
    name = rng.choice(
        ["train-99999.bin", "x.txt", f"{TOKENIZER}/added_tokens.json", f"{TOKENIZER}/special_tokens_map.json"]
    )
    (case.directory / name).write_bytes(rng.randbytes(40))
    return {Path(name).name}


def edit_manifest(rng: random.Random, case: Case) -> set[str]:
    path = case.directory / MANIFEST
    raw = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2, 5])):
        edit_json(rng, raw)
    return _rewrite(path, _dump(raw))


def edit_tokenizer(rng: random.Random, case: Case) -> set[str]:
    path = rng.choice(sorted((case.directory / TOKENIZER).iterdir()))
    raw = json.loads(path.read_text())
    edit_json(rng, raw)
    return _rewrite(path, _dump(raw))


def edit_shard_list(rng: random.Random, case: Case) -> set[str]:
    """Valid JSON of the right types: a shard dropped, repeated, moved, renamed or counted wrongly."""
    path = case.directory / MANIFEST
    raw = json.loads(path.read_text())
    shards = raw["shards"]
    entry = rng.choice(shards)
    key = rng.choice(["documents", "tokens", "bin_bytes"])
    rng.choice([
        lambda: shards.remove(entry), lambda: shards.append(entry), lambda: shards.reverse(), shards.clear,
        lambda: entry.update(split="valid"), lambda: entry.update(name="train-00001"),
        lambda: entry.update(name=f"../{case.others[0].name}/train-00000"), lambda: entry.update(bin_sha256="0" * 64),
        lambda: entry.update({key: entry[key] + rng.choice([-1, 1, 2**40])}), lambda: raw.update(vocab_size=301),
        lambda: raw.update(dtype="int32"), lambda: raw.update(checksum="0" * 64),
        lambda: raw.update(tokenizer_files={}),
    ])()  # fmt: skip
    return _rewrite(path, _dump(raw))


def odd_json(rng: random.Random, case: Case) -> set[str]:
    """Text that a JSON parser has trouble with, in place of a file."""
    path = rng.choice([case.directory / MANIFEST, *sorted((case.directory / TOKENIZER).iterdir())])
    odd = [
        b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"1e999", b"9" * 10_000, b"[" * 100_000, b'{"a":' * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}", path.read_text().encode("utf-16"), path.read_text().encode("utf-32"),
    ]  # fmt: skip
    return _rewrite(path, rng.choice(odd))


def white_space(rng: random.Random, case: Case) -> set[str]:
    """The same JSON, written otherwise: harmless."""
    path = case.directory / MANIFEST
    raw = json.loads(path.read_text())
    return _rewrite(path, json.dumps(raw, indent=rng.choice([None, 0, 7]), sort_keys=rng.random() < 0.5).encode())


def tamper_with_memory(rng: random.Random, case: Case) -> set[str]:
    """``.verified.json`` is no authority: whatever it says, a damaged shard is found. Half of the time there is one."""
    path = case.directory / MEMORY
    stamps: Any = json.loads(path.read_text()) if path.is_file() else {}
    bins = sorted(case.directory.glob("*.bin"))
    named = flip_bits(rng, case) if rng.random() < 0.5 else {MEMORY}
    everyone = {file.name: rng.choice([stamps.get(file.name), stamps.get(bins[0].name), [1, 2], None]) for file in bins}
    odd = [b"", b"[]", b"[" * 100_000, b"9" * 10_000, rng.randbytes(50), json.dumps(everyone).encode()]
    path.write_bytes(rng.choice(odd))
    return named


def a_faulty_writer(rng: random.Random, case: Case) -> set[str]:
    """Contradictory files whose checksums are all right: read or refused, never a crash."""
    damaged = rng.choice([flip_bits, truncate, zero_fill, overwrite, append, edit_tokenizer, edit_shard_list])
    damaged(rng, case)
    vouch(case.directory)
    return set()


def vouch(directory: Path) -> None:
    """Make every checksum of the manifest fit the files as they are now, if it can still be read."""
    from kd_megatron.files.manifest import file_sha256

    try:
        raw = json.loads((directory / MANIFEST).read_text())
        for entry in raw["shards"]:
            bin_path, idx_path = (directory / f"{entry['name']}.{kind}" for kind in ("bin", "idx"))
            entry["bin_sha256"], entry["idx_sha256"] = file_sha256(bin_path), file_sha256(idx_path)
            entry["bin_bytes"] = bin_path.stat().st_size
        write_manifest(directory, Manifest.model_validate(raw))
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        return


def edit_json(rng: random.Random, raw: Any) -> None:
    """Change, drop or add one value somewhere in ``raw``."""
    containers = [raw]
    while (value := rng.choice(_children(containers[-1]) or [None])) is not None and rng.random() < 0.8:
        containers.append(value)
    place = containers[-1]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if not keys or rng.random() < 0.1:
        place.update({"odd": 1}) if isinstance(place, dict) else place.append(copy.deepcopy(rng.choice(VALUES)))
        return
    key = rng.choice(keys)
    if rng.random() < 0.2:
        del place[key]
    else:
        large = rng.choice([_deep(rng.choice([500, 900])), "x" * 100_000])
        place[key] = large if rng.random() < 0.1 else copy.deepcopy(rng.choice(VALUES))


def _children(place: Any) -> list[Any]:
    values = place.values() if isinstance(place, dict) else place
    return [value for value in values if isinstance(value, dict | list) and value]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _dump(raw: Any) -> bytes:
    return json.dumps(raw).encode()


def _names(case: Case) -> set[str]:
    return {path.name for path in data_files(case.directory)}


def _rewrite(path: Path, content: bytes) -> set[str]:
    path.write_bytes(content)
    return {path.name}


AT_REST: list[Damage] = [
    flip_bits, flip_bits, truncate, append, grow, zero_fill, overwrite, swap_within, swap_between_sets,
    swap_manifest_and_tokenizer, remove, another_kind_of_file, add_a_file, edit_manifest, edit_manifest, edit_tokenizer,
    edit_shard_list, odd_json, white_space, tamper_with_memory, a_faulty_writer,
]  # fmt: skip


# --- under a running loader -------------------------------------------------------------------------------


def _mapped(rng: random.Random, case: Case) -> Path:
    return rng.choice(sorted(case.directory.glob("train-*.bin")))


def replaced(rng: random.Random, case: Case) -> set[str]:
    path = _mapped(rng, case)
    aside = path.with_suffix(".aside")
    aside.write_bytes(rng.choice([path.read_bytes(), path.read_bytes()[::-1], b"", b"x" * 10]))
    os.replace(aside, path)
    return {path.name}


def shortened(rng: random.Random, case: Case) -> set[str]:
    path = _mapped(rng, case)
    os.truncate(path, rng.choice([0, 2, path.stat().st_size // 2, path.stat().st_size - 2]))
    return {path.name}


def vanished(rng: random.Random, case: Case) -> set[str]:
    path = _mapped(rng, case)
    rng.choice([path.unlink, lambda: path.rename(path.with_suffix(".away")), lambda: shutil.rmtree(case.directory)])()
    return {path.name} | ({case.directory.name} if not case.directory.exists() else set())


def written_in_place(rng: random.Random, case: Case) -> set[str]:
    path = _mapped(rng, case)
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(rng.randrange(times.st_size - 1))
        file.write(rng.choice([b"\0\0", rng.randbytes(2), b"\xff"]))
    if rng.random() < 0.5:  # as some copying tools do
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return {path.name}


def only_touched(rng: random.Random, case: Case) -> set[str]:
    """Time stamps move, the content does not: harmless."""
    path = _mapped(rng, case)
    rng.choice([path.touch, lambda: path.chmod(0o600), lambda: os.link(path, path.with_suffix(".link"))])()
    return {path.name}


UNDER_A_RUN: list[Damage] = [replaced, shortened, vanished, written_in_place, only_touched]
