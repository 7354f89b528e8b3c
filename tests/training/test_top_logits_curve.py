"""vanilla_kd from cached top logits: with every token kept, 200 steps are those from the teacher's own logits."""

from dataclasses import replace
from pathlib import Path

import pytest
from curves import Curve, curve, largest_difference
from small_shards import VOCAB_SIZE
from tiny_study import tiny_study, write_inputs
from tolerances import BACKENDS_200_STEPS_RELATIVE

from kd_megatron.kernels.vocab_kl import chunked
from kd_megatron.kernels.vocab_kl.top_logits import top_logits
from kd_megatron.tensors import Batch, Taps
from kd_megatron.training.teacher import Teacher

NUM_STEPS = 200
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("top_logits"))


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch):
    """``keep(k)``: from now on the teacher hands over its k likeliest tokens and no logits."""
    whole = Teacher.__call__

    def kept(num_tokens: int) -> None:
        def taps(self: Teacher, batch: Batch, inputs: str) -> Taps:
            outputs = whole(self, batch, inputs)
            assert outputs.logits is not None
            return replace(outputs, logits=None, top_logits=top_logits(outputs.logits.dense(), num_tokens, TEMPERATURE))

        monkeypatch.setattr(Teacher, "__call__", taps)

    return kept


def train(inputs: Path, directory: Path, num_steps: int, backend: str = "auto") -> Curve:
    arm = {"objective": "vanilla_kd", "temperature": TEMPERATURE, "backend": backend}
    study = tiny_study(inputs, training={"global_batch_size": 4, "micro_batch_size": 4}, arms={"vanilla_kd": arm})
    return curve(study, "vanilla_kd", directory, inputs / "teacher", num_steps, rate=1e-3)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_200_steps_with_every_token_are_those_of_the_teacher(inputs: Path, keep, tmp_path: Path, monkeypatch, backend):
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 5)  # several chunks, the last one not full
    of_logits = train(inputs, tmp_path / "logits", NUM_STEPS, backend)
    keep(VOCAB_SIZE)
    of_every_token = train(inputs, tmp_path / "every", NUM_STEPS, backend)
    assert largest_difference(of_logits, of_every_token) <= BACKENDS_200_STEPS_RELATIVE
    assert of_logits[-1]["kd"] < 0.9 * of_logits[0]["kd"], "nothing was trained"


def test_with_few_tokens_the_divergence_is_bounded_from_below_and_falls(inputs: Path, keep, tmp_path: Path):
    of_logits = train(inputs, tmp_path / "logits", 1)
    keep(8)
    of_few = train(inputs, tmp_path / "few", 60)
    assert 0 < of_few[0]["kd"] < of_logits[0]["kd"]
    assert of_few[0]["mlm"] == pytest.approx(of_logits[0]["mlm"], rel=BACKENDS_200_STEPS_RELATIVE)
    assert sum(row["kd"] for row in of_few[-10:]) < 0.9 * sum(row["kd"] for row in of_few[:10])
