"""200 training steps with the reference kernels and with the fused ones: the same curve, for each objective."""

from pathlib import Path

import pytest
from curves import curve, largest_difference
from tiny_study import ARMS, tiny_study, write_inputs
from tolerances import BACKENDS_200_STEPS_RELATIVE

from kd_megatron.kernels.vocab_kl import chunked as vocab_kl

NUM_STEPS = 200
LENGTH = 96  # more than one block of rows
FUSED = {"scratch": ["chunked"], "vanilla_kd": ["chunked"], "minilm": ["chunked"], "tinybert": ["tiled", "closed_form"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("curves"), max_position_embeddings=LENGTH)


@pytest.mark.parametrize("objective", ARMS)
def test_200_steps_give_the_same_curve(inputs: Path, objective: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vocab_kl, "CHUNK_ROWS", 32)  # several chunks, the last one not full

    def train(backend: str) -> list[dict[str, float]]:
        study = tiny_study(
            inputs,
            data={"sequence_length": LENGTH},
            student={"max_positions": LENGTH},
            training={"global_batch_size": 4, "micro_batch_size": 4},
            arms={objective: ARMS[objective] | {"backend": backend}},
        )
        return curve(study, objective, tmp_path / backend, inputs / "teacher", NUM_STEPS, rate=1e-3)

    reference = train("reference")
    differences = {backend: largest_difference(reference, train(backend)) for backend in FUSED[objective]}
    assert max(differences.values()) <= BACKENDS_200_STEPS_RELATIVE, differences
    first, *_, last = reference
    assert sum(last.values()) != pytest.approx(sum(first.values()), rel=0.01), "nothing was trained"
