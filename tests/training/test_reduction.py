"""Gradients reduced during the backward pass are those reduced after it, of two ranks bit for bit."""

import json
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from tiny_study import write_inputs

from kd_megatron.engine import reduction
from kd_megatron.engine.reduction import OverlappedReduction

WORKER = str(Path(__file__).parent / "reduction_worker.py")
NUM_STEPS = 3


def test_two_ranks_train_the_same_weights_and_send_early(tmp_path: Path) -> None:
    output = tmp_path / "rows.json"
    processes.run([WORKER, str(write_inputs(tmp_path / "inputs")), str(output)], world_size=2)
    rows = json.loads(output.read_text(encoding="utf-8"))
    assert len(rows) == 4
    for name, row in rows.items():
        assert row["equal"], name
        assert row["buckets"] > 3
        assert row["early"] == NUM_STEPS * row["buckets"], "every bucket was under way when the backward pass ended"
    assert rows["fp32 fp32"]["sum"] != rows["fp32 bf16"]["sum"], "what is sent in bf16 is rounded"


class Sent(SimpleNamespace):
    """A reduction that is at once done: over as many processes as there are, of equal gradients."""

    def wait(self) -> None:
        self.row.mul_(3.0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was sent, in order."""
    sizes: list[int] = []

    def all_reduce(row: torch.Tensor, async_op: bool) -> Sent:
        assert async_op
        sizes.append(row.numel())
        return Sent(row=row)

    monkeypatch.setattr(reduction.torch_dist, "all_reduce", all_reduce)
    return sizes


def test_buckets_go_from_the_last_weight_to_the_first_whatever_comes_first(sent: list[int]) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (1, 2, 3, 4, 50)]
    reducer = OverlappedReduction(parameters, torch.float32, world_size=3, bucket_bytes=4 * 7)
    assert [[p.numel() for p in bucket.parameters] for bucket in reducer.buckets] == [[50], [4, 3], [2, 1]]
    first = [parameters[0].sum(), parameters[1].sum() * 2.0]
    torch.stack(first).sum().backward()  # of another micro-batch: kept
    assert sent == []
    reducer.expect()
    torch.stack([parameters[0].sum(), parameters[1].sum()]).sum().backward()
    assert sent == []  # the buckets before theirs are not complete
    (parameters[4].sum() * 5.0 + parameters[3].sum()).backward()
    assert sent == [50]
    reducer.finish()  # the third weight has no gradient
    assert sent == [50, 7, 3]
    values = [float(parameter.grad[0]) for parameter in parameters if parameter.grad is not None]
    assert values == [2.0, 3.0, 0.0, 1.0, 5.0]
    reducer.close()
    parameters[0].sum().backward()
    assert sent == [50, 7, 3]
