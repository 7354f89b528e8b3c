"""``inspect`` on a directory of a teacher cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kd_megatron.cli import main
from kd_megatron.teacher_cache.contents import Contents
from kd_megatron.teacher_cache.opening import OpenStore, identity_of
from kd_megatron.tensors import ModelShape, Needs


def test_it_checks_every_row_and_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = Contents(Needs(hidden=(1,)), "masked", ModelShape(2, 4, 1, 300), 16, 2, 64, 1.0)
    identity = identity_of(contents, {"teacher": "abc"}, {"mask_seed": 7})
    store = OpenStore(tmp_path, contents, identity, num_rows=10, max_gib=1.0)
    store.write(np.arange(4), torch.arange(4 * 128).to(torch.uint8).view(4, 128))
    store.add_fill_cost(2.0, 4)
    store.close()
    directory = tmp_path / "masked-hidden1"
    assert main.main(["inspect", str(directory)]) == 0
    said = capsys.readouterr().out
    for words in ("4 of 10 (40.0%)", "mask_seed", "hidden1: bfloat16 [16, 4]", "500 ms each", "every byte of 4 rows"):
        assert words in said
    path = directory / "rows-00000.bin"
    path.write_bytes(path.read_bytes()[:130] + b"?" + path.read_bytes()[131:])
    assert main.main(["inspect", str(directory)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 rows do not fit their checksum (such as row 1)" in said
    assert "every byte of 3 rows" in said
