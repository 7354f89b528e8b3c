"""What Megatron-LM does where this repository does otherwise: the other side of `bench data`.

Its own code does the work: megatron-core's ``IndexedDatasetBuilder`` and ``BERTMaskedWordPieceDataset``.
"""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray


def import_builder() -> Any:
    """megatron-core's ``IndexedDatasetBuilder``. The import takes seconds: do it before a clock starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about packages for GPUs
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    return IndexedDatasetBuilder


def write_document_by_document(corpus: Path, tokenizer: Path, end_id: int, prefix: Path, dtype: str) -> int:
    """As ``tools/preprocess_data.py --workers 1 --append-eod`` does, in this process: read, encode, append, next.

    It is spared the worker process that the tool starts, and given the fast tokenizer without the wrapper around it.

    Args:
        corpus: a ``.jsonl`` file with the documents in the field ``text``.
        tokenizer: a directory with ``tokenizer.json``.
        end_id: goes to the end of each document.
        prefix: of the ``.bin`` and ``.idx`` files.
        dtype: ``"uint16"`` or ``"int32"``.

    Returns:
        The number of tokens written.
    """
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.encode_special_tokens = True  # as `prepare` does: a text that mentions "[MASK]" is text
    builder = import_builder()(f"{prefix}.bin", dtype=getattr(np, dtype))
    num_tokens = 0
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            ids = encoder.encode(json.loads(line)["text"], add_special_tokens=False).ids
            ids.append(end_id)
            builder.add_document(ids, [len(ids)])
            num_tokens += len(ids)
    builder.finalize(f"{prefix}.idx")
    return num_tokens


class MaskedSamples:
    """megatron-core's masked samples of given windows, one by one, by the unchanged ``__getitem__`` of its dataset.

    Its constructor is passed over: it would want a process group and build an index of sentences. The masking has the
    defaults of ``pretrain_bert.py``: 15 %, whole words, n-grams of at most 3; no second sentence.

    Args:
        windows: [B, L - 2] token ids without [CLS] and [SEP], L at least 5.
        vocabulary: id -> token, of all ids.
        special: the ids of ``cls``, ``sep``, ``mask`` and ``pad``.
    """

    def __init__(self, windows: NDArray[np.int64], vocabulary: dict[int, str], special: dict[str, int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset as Theirs

        length = windows.shape[1] + 2
        self._samples = Theirs.__new__(Theirs)
        self._samples.dataset = windows
        self._samples.sample_index = np.array([(i, i + 1, length - 2) for i in range(len(windows))])
        self._samples.token_lookup = list(vocabulary)
        self._samples._pad_token_id = special["pad"]
        self._samples.config = SimpleNamespace(
            sequence_length=length,
            random_seed=0,
            classification_head=False,
            masking_probability=0.15,
            masking_max_ngram=3,
            masking_do_full_word=True,
            masking_do_permutation=False,
            masking_use_longer_ngrams=False,
            masking_use_geometric_distribution=False,
            tokenizer=SimpleNamespace(inv_vocab=vocabulary, **special),
        )

    def __len__(self) -> int:
        return len(self._samples.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: ``text`` and ``labels``, [L] each, and what else megatron-core returns with them."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample: dict[str, Any] = self._samples[index]
        return sample
