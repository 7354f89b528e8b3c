"""Which configurations keep the optimizer's weights on the host: the flag that stops an update goes there first."""

import pytest

from kd_megatron.engine.build import DS_CONFIGS, _is_offloaded, read_ds_config


@pytest.mark.parametrize("name", sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
def test_the_files_named_offload_are_those_that_offload(name):
    assert _is_offloaded(read_ds_config(name)["zero_optimization"]) == name.endswith("_offload")


def test_offloading_to_nowhere_is_none():
    assert not _is_offloaded({"stage": 2, "offload_optimizer": {"device": "none"}})
