"""Random inputs of a benchmark, the same on every call.

Shapes: B batch, L length, N rows.
"""

import torch
from torch import Tensor


def lengths_mask(batch: int, length: int, device: torch.device) -> Tensor:
    """[B, L] bool: whole sequences, shorter ones, some with holes and, from B = 3 on, an empty one."""
    lengths = torch.tensor([length - (index * length) // max(1, batch - 1) for index in range(batch)])
    valid = torch.arange(length)[None, :] < lengths[:, None]
    valid[1::2, 1::5] = False
    return valid.to(device)


class RandomTensors:
    """Random tensors of one dtype on one device, each from the next numbers of one generator."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def tensor(
        self,
        shape: tuple[int, ...],
        spread: float,
        offset: Tensor | None = None,
        valid: Tensor | None = None,
        trained: bool = False,
    ) -> Tensor:
        """Normal numbers of standard deviation ``spread`` around ``offset``; NaN at padding, as nothing may read it."""
        values = torch.randn(shape, generator=self.generator, dtype=torch.float32, device=self.device).mul_(spread)
        if offset is not None:
            values.add_(offset)
        if valid is not None:
            values[~valid] = torch.nan
        return values.to(self.dtype).requires_grad_(trained)

    def labels(self, num_rows: int, vocab_size: int) -> Tensor:
        """[N] int64."""
        return torch.randint(vocab_size, (num_rows,), generator=self.generator, device=self.device)
