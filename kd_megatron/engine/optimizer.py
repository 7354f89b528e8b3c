"""AdamW with float32 masters of bfloat16 weights, for one whole copy of the model on every process (ZeRO stage 0).

DeepSpeed's own optimizer for that case reads one number per parameter from the device at every step, and takes a
phantom step when it is made. Partitioned stages keep DeepSpeed's masters.
"""

from typing import Any

import torch
from torch import Tensor


class MasterAdamW(torch.optim.AdamW):
    """Fused AdamW on float32 copies of the weights; each update is rounded into the weights once.

    Args:
        groups: parameter groups of bfloat16 weights, each with its ``weight_decay``.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.weights: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self.masters = [weight.detach().float().clone().requires_grad_() for weight in self.weights]
        of_weight = dict(zip(self.weights, self.masters, strict=True))
        masters = [group | {"params": [of_weight[weight] for weight in group["params"]]} for group in groups]
        super().__init__(masters, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update masters and weights by the weights' gradients; neither while ``found_inf`` is 1."""
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        loss = super().step(closure)
        for master in self.masters:
            master.grad = None
        torch._foreach_copy_(self.weights, self.masters)
        return loss

    def master(self, weight: Tensor) -> Tensor | None:
        """The float32 master of ``weight``; None when it is not trained."""
        return next((m for m, w in zip(self.masters, self.weights, strict=True) if w is weight), None)
