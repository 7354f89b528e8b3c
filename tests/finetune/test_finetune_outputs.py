import os
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_megatron.errors import OutputError
from kd_megatron.finetune.grid import outputs

PREDICTIONS = {
    "dev": np.array([[0.1, -2.5], [3.25, 0.0], [-1.0, 1e-30]], np.float32),
    "test_matched": np.array([1.5, 2.5], np.float32),
}
CONTENT = {
    "learning_rate": 3e-5,
    "batch_size": 16,
    "seed": 2,
    "score": 0.75,
    "metrics": {"f1": 0.5, "accuracy": 1.0},
    "num_examples": 96,
    "dev_curve": [{"step": 3, "examples": 48, "f1": 0.25}],
    "learning_curve": [{"step": 3, "examples": 48, "loss": 0.5}, {"step": 6, "examples": 96, "loss": 0.25}],
}


def test_predictions_are_read_as_they_were_written(tmp_path: Path):
    path = outputs.predictions_path(tmp_path / "reviews" / "cells" / "lr_1e-05-batch_8.json")
    assert path.name == "lr_1e-05-batch_8.npz"
    outputs.write_predictions(path, PREDICTIONS)
    found = outputs.read_predictions(path)
    assert list(found) == list(PREDICTIONS)
    for name, values in PREDICTIONS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)
    assert os.listdir(path.parent) == [path.name], "nothing is left aside"


def test_equal_predictions_are_equal_bytes(tmp_path: Path):
    for name in ("a.npz", "b.npz"):
        outputs.write_predictions(tmp_path / name, PREDICTIONS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_absent_or_damaged_predictions_say_what_to_do(tmp_path: Path):
    with pytest.raises(OutputError, match=r"(?s)none\.npz does not exist.*save_predictions"):
        outputs.read_predictions(tmp_path / "none.npz")
    path = tmp_path / "torn.npz"
    outputs.write_predictions(path, PREDICTIONS)
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-30], whole.replace(whole[200:208], b"\xff" * 8, 1)):
        path.write_bytes(damaged)
        with pytest.raises(OutputError, match=r"torn\.npz is damaged"):
            outputs.read_predictions(path)


def test_tensorboard_reads_the_curves_once(tmp_path: Path):
    cell = tmp_path / "reviews" / "cells" / "lr_3e-05-batch_16-seed_2-abc.json"
    directory = outputs.tensorboard_path(tmp_path, cell)
    assert directory == tmp_path / "tensorboard" / "reviews" / cell.stem
    (directory / "left by a killed process").mkdir(parents=True)
    for _ in range(2):
        outputs.write_tensorboard(directory, CONTENT)
    assert [path.name for path in directory.parent.iterdir()] == [cell.stem]
    board = EventAccumulator(str(directory)).Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "dev/f1", "final/f1", "final/accuracy", "final/score"}
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(48, 0.5), (96, 0.25)]
    assert [(event.step, event.value) for event in board.Scalars("final/f1")] == [(96, 0.5)]
    assert "hparams" in board.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name
