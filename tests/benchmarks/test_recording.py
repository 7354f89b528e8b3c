import torch
from recording import new_buffers_hold_nan, record

FLOAT = 4  # bytes


def test_counts_what_lives_at_one_time():
    outside = torch.ones(100)

    def compute():
        first = outside[:50] + 1.0  # 50 alive
        second = torch.cat([first, first])  # 150
        del first
        return second * 2.0  # 200

    recording = record(compute)
    assert recording.peak_bytes == 200 * FLOAT
    assert recording.largest_bytes == 100 * FLOAT
    assert recording.shapes == {(50,), (100,)}


def test_sees_inside_autograd_functions_and_their_backward():
    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x[:, None] * x[None, :]).diagonal().sum()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2.0 * gradient * torch.stack([x, x, x])[0]

    x = torch.ones(7, requires_grad=True)
    recording = record(lambda: Squared.apply(x).backward())
    assert recording.shapes_with(7) == [(7, 7)]
    assert (3, 7) in recording.shapes


def test_workspaces_and_in_place_operations_cost_once():
    def compute():
        workspace = torch.empty(10)
        for _ in range(5):
            torch.add(workspace, 1.0, out=workspace).mul_(2.0)

    assert record(compute).peak_bytes == 10 * FLOAT


def test_new_buffers_hold_nan_and_then_no_more():
    like = torch.ones(3)
    with new_buffers_hold_nan():
        assert all(x.isnan().all() for x in (torch.empty(3), torch.empty_like(like), like.new_empty(2)))
    assert not torch.are_deterministic_algorithms_enabled()
