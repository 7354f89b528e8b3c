"""Models and tokenizers of the Hugging Face hub, at a revision: an id becomes a local directory, once, at the start.

What an id names can change from one day to the next; a commit cannot. Only weights as safetensors, configuration and
tokenizer files are fetched: pickles and code never reach this machine.
"""

import re
from pathlib import Path

from kd_megatron.console import logs
from kd_megatron.errors import DataError, ModelError
from kd_megatron.files.manifest import TOKENIZER_FILES as TOKENIZER_FILES  # what a tokenizer alone is made of
from kd_megatron.ranks import dist
from kd_megatron.recipe import paths

MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json")


def is_local(name: str) -> bool:
    """Whether ``name`` is a path of this machine rather than an id of the hub."""
    return name.startswith((".", "/", "~", paths.DATA_HOME)) or Path(name).exists()


def is_commit(revision: str | None) -> bool:
    """Whether ``revision`` is a full commit, which cannot come to mean something else."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def local_directory(name: str, revision: str | None, key: str, files: tuple[str, ...] = MODEL_FILES) -> str:
    """The directory of ``name``: `expand`ed when it is a local path, otherwise the hub's files in the local cache.

    Args:
        revision: a commit, tag or branch; None is the hub's newest.
        key: the section of the recipe that names it, for messages.

    Raises:
        ModelError: a local path with a revision, or an id that can neither be reached nor is in the cache.
    """
    if is_local(name):
        if revision is not None:
            raise ModelError(
                given=f"{key}.revision {revision!r} with the local path {name}",
                expected="a revision with a hub id: a local directory has none",
                fix=f"remove {key}.revision, or give the model's hub id",
            )
        path = paths.expand(name)
        if paths.how_to_get(name) and not Path(path).exists():
            raise ModelError(
                given=f"{key}: {name} does not exist ({path})", expected="the model", fix=paths.how_to_get(name)
            )
        return path
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(name, revision=revision, allow_patterns=list(files))
    except Exception as error:  # no connection, no such id or revision: a dozen classes, by library and version
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            given=f"{key}: {name!r}{f' at revision {revision!r}' if revision else ''} cannot be had: {first_line}",
            expected="a local directory in Hugging Face format, or a hub id that can be reached or is in the cache",
            fix="check id and revision; without network, download it first: hf download ID --revision COMMIT",
        ) from error
    if not is_commit(revision):
        pin = Path(directory).name
        advice = f" To pin it: {key}.revision={pin}" if is_commit(pin) else ""
        logs.warn(f"{key}: what the hub has for {name} at {revision or 'its newest revision'} may change.{advice}")
    return directory


def directory_on_all_ranks(name: str, revision: str | None, key: str) -> str:
    """`local_directory` of the same commit on every rank, fetched by rank 0 first. Collective."""
    found = dist.on_main(lambda: local_directory(name, revision, key))
    if dist.is_main() or is_local(name):
        return found
    commit = Path(found).name  # a branch may have moved since
    return local_directory(name, commit if is_commit(commit) else revision, key)


def check_data_revision(name: str, revision: str | None, described: str) -> None:
    """Raise `DataError` for a local data set with a revision; warn of a hub's without a commit."""
    if is_local(name):
        if revision is not None:
            raise DataError(
                given=f"revision {revision!r} of the local data set {name}",
                expected="a revision with a hub id: a local directory has none",
                fix="remove 'revision', or give the data set's hub id",
            )
    elif not is_commit(revision):
        at = revision or "its newest revision"
        logs.warn(f"{described}: what the hub has at {at} may change. To pin it: give its commit as 'revision'")


def source_of(path: str | None) -> str | None:
    """``ID@COMMIT`` of a directory in the hub's cache; None for any other."""
    match = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})/?$", path or "")
    return f"{match[1].replace('--', '/')}@{match[2]}" if match else None
