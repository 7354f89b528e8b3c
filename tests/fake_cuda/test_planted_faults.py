"""What fails on a GPU, or waits for one, fails on the fake one, and the message names the line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import needs_fake_cuda, prepared, steps
from tiny_study import write_inputs
from torch import Tensor

from benchmarks.model import fake_cuda as fake_device
from benchmarks.model.fake_cuda import FakeCudaError, fake_cuda
from kd_megatron.objectives.minilm import MiniLm
from kd_megatron.tensors import Batch
from kd_megatron.training.setup import Run
from kd_megatron.training.step import Watch

pytestmark = needs_fake_cuda
BY_KERNEL = "relation_kl"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("fake"))


def line_of(function: Callable[..., Any], content: str) -> str:
    """``file:line function`` of the line in ``function`` that has ``content``."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + index for index, line in enumerate(lines) if content in line]
    return f"{Path(inspect.getsourcefile(function) or '').name}:{number} {function.__name__}"


def fails(inputs: Path, directory: Path, at: str, message: str) -> None:
    """A step of minilm raises ``message`` at the line ``at``, on the fake GPU; the process is then as before."""
    with (
        fake_cuda() as fake,
        prepared(inputs, directory, "minilm", training={"precision": "bf16"}) as run,
        pytest.raises(FakeCudaError) as raised,
    ):
        steps(fake, run, 1)
    assert at in str(raised.value)
    assert message in str(raised.value)
    assert not torch.cuda.is_available()


def test_nothing_planted(inputs: Path, tmp_path: Path) -> None:
    with fake_cuda() as fake, prepared(inputs, tmp_path, "minilm", training={"precision": "bf16"}) as run:
        steps(fake, run, 1)


def test_a_cpu_tensor_in_a_loss(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MiniLm.forward

    def weighted(self: Any, *taps: Any) -> dict[str, Tensor]:
        sums = forward(self, *taps)
        weights = torch.ones(2)
        return {term: torch.mul(value, weights).sum() for term, value in sums.items()}

    monkeypatch.setattr(MiniLm, "forward", weighted)
    expected = pytest.raises(FakeCudaError, match=r"mul mixes a tensor on cpu \[2\] with cuda")
    with fake_cuda(), expected as raised, prepared(inputs, tmp_path, "minilm"):
        pass  # already the small forward that looks for untrained weights
    assert line_of(weighted, "torch.mul").removesuffix("weighted") in str(raised.value)


def test_a_tap_that_stays_behind(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the door's own check, before any kernel."""
    forward = MiniLm.forward

    def mixed(self: Any, student: Any, teacher: Any, batch: Batch) -> dict[str, Tensor]:
        teacher.queries.update({layer: torch.zeros(tap.shape) for layer, tap in teacher.queries.items()})
        return forward(self, student, teacher, batch)

    monkeypatch.setattr(MiniLm, "forward", mixed)
    with fake_cuda(), pytest.raises(ValueError, match="is on cpu"), prepared(inputs, tmp_path, "minilm"):
        pass


def test_a_number_read_in_the_step(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def looks(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        self.seen = sums[0].item()
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", looks)
    fails(inputs, tmp_path, line_of(looks, ".item()"), "the host reads the device (_local_scalar_dense)")


@pytest.mark.parametrize("read", ["__bool__", "__int__", "tolist", "cpu", "numpy", "nonzero", "unique"])
def test_every_way_to_read(read: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def looks(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        getattr(sums[0], read)()
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", looks)
    fails(inputs, tmp_path, line_of(looks, "read)()"), "the host reads the device")


def test_rows_chosen_by_a_mask(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def chooses(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        sums[sums > 0].sum()
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", chooses)
    fails(inputs, tmp_path, line_of(chooses, "sums[sums > 0]"), "the host reads the device (index)")


def test_places_that_are_on_the_host(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def chooses(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        sums[torch.tensor([0])].sum()
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", chooses)
    fails(inputs, tmp_path, line_of(chooses, "sums[torch"), "a blocking copy to the device, of the places of index")


def test_a_wait_for_the_device(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def waits(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        torch.cuda.synchronize()
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", waits)
    fails(inputs, tmp_path, line_of(waits, "synchronize"), "the host waits for the device")


def test_a_blocking_copy(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocking(self: Batch, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device))

    monkeypatch.setattr(Batch, "to", blocking)
    at = line_of(blocking, "tensor.to(device)").replace("blocking", "<lambda>")
    fails(inputs, tmp_path, at, "a blocking copy to the device")


def test_a_copy_of_memory_that_is_not_pinned(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "pinned", lambda self: self)
    fails(inputs, tmp_path, "kd_megatron/tensors.py", "a copy of memory that is not pinned to the device")


def test_numbers_made_on_the_host(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_update = Watch.before_update

    def makes(self: Watch, sums: Tensor, counts: dict[str, float]) -> None:
        sums = sums * torch.tensor(list(counts.values()), device=sums.device)
        before_update(self, sums, counts)

    monkeypatch.setattr(Watch, "before_update", makes)
    fails(inputs, tmp_path, line_of(makes, "torch.tensor"), "a blocking copy to the device")


def test_a_cpu_tensor_given_to_a_kernel(inputs: Path, tmp_path: Path) -> None:
    with fake_cuda() as fake, pytest.raises(FakeCudaError, match=f"kernel {BY_KERNEL} is given a tensor on cpu"):
        fake.launch(BY_KERNEL, {"student": torch.ones(2)})


def test_only_one_fake_device_at_a_time() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="one fake device"), fake_cuda():
        pass
    assert not torch.cuda.is_available()
    assert not torch.empty(3).is_pinned()


def test_streams_wait_for_each_other_and_the_host_for_none() -> None:
    with fake_cuda() as fake:
        side, copied = torch.cuda.Stream(), torch.cuda.Event()
        with fake.hot(), torch.cuda.stream(side):
            there = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
            copied.record(side)
            torch.cuda.current_stream().wait_event(copied)
            there.record_stream(side)
            with pytest.raises(FakeCudaError, match="the host waits"):
                copied.synchronize()
        assert torch.zeros_like(torch.ones(2, 3), device="cuda").shape == (2, 3)


def test_pinned_memory_is_told_apart() -> None:
    with fake_cuda():
        pinned = torch.ones(5).pin_memory()
        assert pinned.is_pinned()
        assert pinned[2:].is_pinned()
        assert not torch.ones(5).is_pinned()
        assert pinned.sum() == 5.0


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_device.fake_library.shutil, "which", lambda name: None)
    assert "g++" in str(fake_device.fake_library.missing())


def test_no_run_is_left(inputs: Path, tmp_path: Path) -> None:
    """A run that was made on the fake device does not come back to one."""
    with fake_cuda(), prepared(inputs, tmp_path, "scratch") as run:
        assert isinstance(run, Run)
    assert torch.ones(2).device.type == "cpu"
