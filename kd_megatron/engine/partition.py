"""A frozen model in pieces over the processes, for a teacher too large for one device: ZeRO stage 3 of its own.

Every process holds a part of each matrix. A layer's weights are gathered from all processes when it runs, by hooks
around its modules, and let go of afterwards. So all processes run the same modules in the same order. No optimizer
takes part, and the student's engine, at whatever stage, knows nothing of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kd_megatron.engine.build import start_deepspeed

WHOLE_ELEMENTS = 8192  # biases, layer norms and what else is as small stay whole: gathering would cost more
AHEAD_ELEMENTS = 20_000_000  # gathered before they are needed, and the most that is kept between two uses


class PartitionedModel:
    """``model`` (frozen, its parameters on the CPU) in pieces, in place. Collective, as is `run`.

    Args:
        model: float32 or bfloat16; each parameter goes to the device by itself, so the whole need not fit there.
    """

    def __init__(self, model: nn.Module) -> None:
        deepspeed = start_deepspeed()
        bf16 = next(model.parameters()).dtype == torch.bfloat16
        config = {
            "train_micro_batch_size_per_gpu": 1,  # it wants one; nothing is trained
            "bf16": {"enabled": bf16},
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": WHOLE_ELEMENTS,
                "stage3_prefetch_bucket_size": AHEAD_ELEMENTS,
                "stage3_max_reuse_distance": AHEAD_ELEMENTS,
                "memory_efficient_linear": False,  # it would replace `linear` in the student too; no backward, no need
            },
        }
        self.model = model
        deepspeed.zero.Init(
            module=model, config_dict_or_path=config, dtype=torch.bfloat16 if bf16 else torch.float32, enabled=True
        )
        self._engine, *_ = deepspeed.initialize(model=_Root(model), config=config)
        device = torch.device(self._engine.device)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)

    def run(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        """``compute(*inputs)``, which may call modules of the model; what they need is gathered when they run."""
        return self._engine.module(compute, *inputs)

    @torch.no_grad()
    def whole(self, parameter: Tensor) -> Tensor:
        """A copy of one of the model's parameters, whole. Collective."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        parameters: list[Any] = list(self.model.parameters())
        return sum(parameter.ds_numel for parameter in parameters)

    def close(self) -> None:
        """Free what DeepSpeed holds; the model is not used after this."""
        self._engine.destroy()


class _Root(nn.Module):
    """DeepSpeed follows the order of modules between two calls of this one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[..., Any], *inputs: Any) -> Any:
        return compute(*inputs)
