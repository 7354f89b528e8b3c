import pytest

from kd_megatron.ranks import ports


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """All of these compare scores to the last digit."""
