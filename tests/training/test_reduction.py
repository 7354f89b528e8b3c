"""Gradients that are reduced while the backward pass runs, beside DeepSpeed's reduction after it (ZeRO stage 0)."""

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from tiny_study import write_inputs
from tolerances import PARITY_BF16_RELATIVE
from torch import nn

from kd_megatron.engine import reduction
from kd_megatron.engine.reduction import OverlappedReduction

WORKER = str(Path(__file__).parent / "reduction_worker.py")
CASES = [f"{way}:{precision}:fp32" for way in ("ours", "small", "deepspeed") for precision in ("fp32", "bf16")]
CASES += ["ours:bf16:bf16", "deepspeed:bf16:bf16"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of two processes, by the worker's case."""
    directory = write_inputs(tmp_path_factory.mktemp("reduction"))
    output = directory / "outcomes.json"
    processes.run([WORKER, str(directory), str(output), *CASES], world_size=2)
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", ["ours", "small"])
def test_weights_are_those_of_deepspeeds_reduction_bit_for_bit(
    outcomes: dict[str, dict[str, Any]], way: str, precision: str
) -> None:
    """Of two processes: a sum of two is the same in any order."""
    ours, theirs = outcomes[f"{way}:{precision}:fp32"], outcomes[f"deepspeed:{precision}:fp32"]
    assert ours["curve"] == theirs["curve"]
    assert ours["weights"] == theirs["weights"]
    assert ours["num_buckets"] > 1 if way == "small" else ours["num_buckets"] == 1


def test_a_reduction_in_bfloat16_rounds_and_no_more(outcomes: dict[str, dict[str, Any]]) -> None:
    short, long = outcomes["ours:bf16:bf16"], outcomes["ours:bf16:fp32"]
    assert short["weights"] == outcomes["deepspeed:bf16:bf16"]["weights"]
    for one, two in zip(short["curve"], long["curve"], strict=True):
        assert one == pytest.approx(two, rel=PARITY_BF16_RELATIVE)


class Sent:
    """Stands for the group of processes: remembers when which bucket was sent. A sum over it doubles."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def all_reduce(self, tensor: torch.Tensor, async_op: bool) -> "Sent":
        assert async_op
        self.sizes.append(tensor.numel())
        tensor.mul_(2.0)
        return self

    def wait(self) -> None:
        pass


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Of two processes that have the same gradients."""
    group = Sent()
    monkeypatch.setattr(reduction.torch_dist, "all_reduce", group.all_reduce)
    monkeypatch.setattr(reduction.dist, "world_size", lambda: 2)
    return group


def test_a_bucket_is_sent_before_the_backward_pass_is_over(sent: Sent) -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
    reduced = OverlappedReduction([first.weight, second.weight], torch.float32, bucket_elements=12)
    assert reduced.num_buckets == 2
    seen: list[list[int]] = []
    states = first(torch.ones(2, 4))
    states.register_hook(lambda gradient: seen.append(list(sent.sizes)))
    loss = second(states).square().sum()
    expected = torch.autograd.grad(loss, [first.weight, second.weight], retain_graph=True)
    seen.clear()
    reduced.begin()
    loss.backward()
    assert seen == [[12]], "the last layer's bucket is out before the gradient has reached the first layer"
    reduced.finish()
    assert sent.sizes == [12, 16]
    for layer, gradient in zip((first, second), expected, strict=True):
        assert torch.equal(layer.weight.grad, gradient)


def test_buckets_keep_their_order_and_an_unreached_parameter_counts_as_zero(sent: Sent) -> None:
    """A process that the loss leaves without a gradient sends as many buckets, in the same order, as the others."""
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))
    reduced = OverlappedReduction([used, unused], torch.float32, bucket_elements=1)
    reduced.begin()
    used.sum().backward()
    assert sent.sizes == [], "the bucket of the unused parameter comes first"
    reduced.finish()
    assert sent.sizes == [5, 3]
    assert torch.equal(unused.grad, torch.zeros(5))


def test_gradients_of_earlier_micro_batches_add_up_and_are_not_sent(sent: Sent) -> None:
    weight = nn.Parameter(torch.ones(3))
    reduced = OverlappedReduction([weight], torch.float32)
    (2.0 * weight).sum().backward()
    assert sent.sizes == []
    reduced.begin()
    weight.sum().backward()
    reduced.finish()
    assert torch.equal(weight.grad, torch.full((3,), 3.0))
    reduced.close()
    weight.sum().backward()
    assert sent.sizes == [3]
