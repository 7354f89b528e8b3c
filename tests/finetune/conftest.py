from pathlib import Path

import pytest
from tiny_encoder import make_model, sentences, write_tsv


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a masked-language model of 2 layers x 32, with dropout, and its tokenizer."""
    return make_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def review_files(tmp_path: Path) -> tuple[Path, Path]:
    """train.tsv (96 rows) and dev.tsv (40 rows) of a task with two labels."""
    return write_tsv(tmp_path / "train.tsv", sentences(96, 1)), write_tsv(tmp_path / "dev.tsv", sentences(40, 2))
