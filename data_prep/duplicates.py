"""Which documents of a spool came before, found in bounded memory from the digests that the spool keeps beside them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGEST = np.dtype([("first", "<u8"), ("second", "<u8")])  # the 16 bytes of `assign.document_digest`
AT_A_TIME = 1 << 20  # digests compared with each other: about 60 MB


def repeated(path: Path) -> NDArray[np.bool_]:
    """[documents] whether each document's digest occurs earlier in the file ``path``: one byte a document.

    The digests are compared part by part, a part being those whose first word has one remainder; the file is read once
    for each part.
    """
    num_documents = path.stat().st_size // _DIGEST.itemsize
    is_repeated = np.zeros(num_documents, np.bool_)
    num_parts = -(-num_documents // AT_A_TIME)
    for part in range(num_parts):
        digests, places = _part(path, num_documents, part, num_parts)
        order = np.lexsort((places, digests["second"], digests["first"]))
        ordered = digests[order]
        is_repeated[places[order[1:]][ordered[1:] == ordered[:-1]]] = True
    return is_repeated


def _part(path: Path, num_documents: int, part: int, num_parts: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The digests of one part, and the places of their documents."""
    digests, places = [], []
    for first in range(0, num_documents, AT_A_TIME):
        chunk = np.fromfile(path, _DIGEST, AT_A_TIME, offset=first * _DIGEST.itemsize)
        chosen = np.flatnonzero(chunk["first"] % np.uint64(num_parts) == np.uint64(part))
        digests.append(chunk[chosen])
        places.append(chosen + first)
    return np.concatenate(digests), np.concatenate(places)
