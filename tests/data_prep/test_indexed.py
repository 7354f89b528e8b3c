"""What is written is, byte for byte, what megatron-core's own builder writes."""

import warnings

import numpy as np
import pytest

from data_prep.indexed import IndexedWriter


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("batches", [[[3, 1, 200], [1]], [[1]], []])
def test_bytes_are_those_of_megatron_core(tmp_path, dtype, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    theirs = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=getattr(np, dtype))
    with IndexedWriter(tmp_path / "ours.bin", dtype) as ours:
        for lengths in batches:
            ids = generator.integers(0, 60_000, sum(lengths)).astype(np.int32)
            ours.add(ids, np.array(lengths, np.int32))
            for document in np.split(ids, np.cumsum(lengths)[:-1]):
                theirs.add_document(document, [len(document)])
        ours.finish(tmp_path / "ours.idx")
    theirs.finalize(str(tmp_path / "theirs.idx"))
    for kind in ("bin", "idx"):
        assert (tmp_path / f"ours.{kind}").read_bytes() == (tmp_path / f"theirs.{kind}").read_bytes()
