"""A DeepSpeed engine around the student: one optimizer recipe for all arms, any ZeRO stage.

The engine does what DeepSpeed is for (partitioning, mixed precision, reduction). What makes arms comparable stays
ours: the loss is normalised by global counts before it gets here, the learning rate is set at every step, and a
non-finite gradient ends the run instead of being skipped.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_megatron import dist
from kd_megatron.errors import NonFiniteError, RecipeError, nearest
from kd_megatron.schema import TrainingRecipe

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler",
        "bf16", "fp16", "gradient_clipping")  # fmt: skip


def read_ds_config(name: str) -> dict[str, Any]:
    """The engine facts in ``ds_configs/NAME.json``. Raises `RecipeError` when it sets what the recipe decides."""
    path = DS_CONFIGS / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in DS_CONFIGS.glob("*.json"))
        raise RecipeError(
            given=f"training.ds_config {name!r}: {nearest(name, known)}", expected=f"a file in {DS_CONFIGS}"
        )
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    clash = sorted(set(OURS) & set(config))
    if clash:
        raise RecipeError(
            given=f"{path} sets {', '.join(clash)}",
            expected="engine facts only: batch size, optimizer and precision belong to the recipe",
            fix="remove these keys from the file",
        )
    return config


def refuse_compile_in_pieces(recipe: TrainingRecipe) -> None:
    """ZeRO-3 gathers each weight in a hook around its module, which compiled code would go round."""
    stage = read_ds_config(recipe.ds_config).get("zero_optimization", {}).get("stage", 0)
    if recipe.compile and stage == 3:
        raise RecipeError(
            given=f"training.compile with training.ds_config {recipe.ds_config!r} (ZeRO stage 3)",
            expected="compile at stages 0 to 2, where every process holds all weights",
            fix="set training.compile to false, or take a smaller stage",
        )


def micro_batches_per_step(recipe: TrainingRecipe) -> int:
    """How many micro-batches each process runs before one update."""
    together = recipe.micro_batch_size * dist.world_size()
    if recipe.global_batch_size % together:
        raise RecipeError(
            given=f"training.global_batch_size {recipe.global_batch_size} with micro_batch_size "
            f"{recipe.micro_batch_size} on {dist.world_size()} processes",
            expected=f"a multiple of {together}",
            fix="change micro_batch_size: it does not affect the result",
        )
    return recipe.global_batch_size // together


def _deepspeed_config(recipe: TrainingRecipe) -> dict[str, Any]:
    refuse_compile_in_pieces(recipe)
    config = read_ds_config(recipe.ds_config)
    config.update(
        train_batch_size=recipe.global_batch_size,
        train_micro_batch_size_per_gpu=recipe.micro_batch_size,
        gradient_accumulation_steps=micro_batches_per_step(recipe),
        gradient_clipping=recipe.gradient_clipping,
        steps_per_print=10**9,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        bf16={"enabled": recipe.precision == "bf16", "check_grad_overflow": True},
        optimizer={
            "type": "AdamW",
            "params": {
                "torch_adam": True,
                "fused": True,
                "lr": recipe.learning_rate,
                "betas": list(recipe.betas),
                "eps": recipe.epsilon,
            },
        },
    )
    return config


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases and layer norms (fewer than two dimensions) do not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """The student under DeepSpeed.

    Args:
        module: student and objective in one module; its forward returns sums. Float32 weights.
        recipe: optimisation, the same for all arms.
        read_directly: parameters that the forward of ``module`` reads itself, outside the submodules that own them:
            ZeRO-3, which gathers a submodule's parameters for its own forward alone, must be told.
    """

    def __init__(self, module: nn.Module, recipe: TrainingRecipe, read_directly: Sequence[nn.Parameter] = ()) -> None:
        deepspeed = _import_deepspeed()
        # The shared-memory op compiles at first use, and a killed run leaves a lock that hangs every later one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
        self.recipe = recipe
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            model_parameters=parameter_groups(module, recipe.weight_decay),
            config=_deepspeed_config(recipe),
        )
        if self.zero_stage == 3:
            for parameter in read_directly:
                deepspeed.zero.register_external_parameter(module, parameter)
        self._undo_phantom_step()
        if recipe.precision == "fp32" and hasattr(self.deepspeed.optimizer, "check_grad_overflow"):
            self.deepspeed.optimizer.check_grad_overflow = True

    @property
    def module(self) -> nn.Module:
        """The module that was given."""
        return self.deepspeed.module

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return int(self.deepspeed.zero_optimization_stage())

    def _undo_phantom_step(self) -> None:
        """Take back the Adam step, on zero gradients, by which DeepSpeed's stage 0 initialises its optimizer for bf16.

        It would decay the float32 masters once and start the bias correction one step late.
        """
        optimizer = self.deepspeed.optimizer
        if self.zero_stage > 0 or self.recipe.precision != "bf16":
            return
        optimizer.optimizer.state.clear()
        for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for master, weight in zip(masters, weights, strict=True):
                master.data.copy_(weight.data)

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """Run the module; under ZeRO-3 this gathers the parameters it needs."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``, this rank's part of the globally normalised loss.

        DeepSpeed averages over ranks; we own the normalisation, so the factor is taken back here.
        """
        self.deepspeed.backward(loss * dist.world_size(), scale_wrt_gas=False)

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last one is done."""
        self.deepspeed.step()

    def update(self, learning_rate: float, where: str) -> float:
        """Clip, update the weights and return the global gradient norm before clipping.

        Raises:
            NonFiniteError: a gradient is NaN or infinite on any rank; the weights were not updated.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm, applied = self._plain_norm(), False
        if norm is None:
            self.deepspeed.step()
            norm, applied = float(self.deepspeed.get_global_grad_norm()), self.deepspeed.was_step_applied()
        elif math.isfinite(norm):
            self.deepspeed.step()
            applied = True
        if not applied or not math.isfinite(norm):
            raise NonFiniteError(
                given=f"{where}: a gradient is not finite",
                expected="finite gradients; the weights were not updated and the last checkpoint is good",
                fix="lower training.learning_rate or lengthen the warm-up, then run the same command to resume",
            )
        return norm

    def _plain_norm(self) -> float | None:
        """The gradient norm where DeepSpeed has no optimizer of its own (fp32 at stage 0), else None."""
        if self.recipe.precision == "bf16" or self.zero_stage > 0:
            return None
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def full_weight(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of the module, whole, float32, on the CPU. Collective under ZeRO.

        Trained parameters come from the float32 masters; those left out of the optimizer from the model itself.
        """
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if full is None:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                full = parameter.detach().clone()
        return full.detach().float().cpu().clone()

    def full_weights(self) -> dict[str, Tensor]:
        """Every parameter of the module by name, as `full_weight` gives it."""
        return {name: self.full_weight(parameter) for name, parameter in self.module.named_parameters()}

    def close(self) -> None:
        """Free what DeepSpeed holds; an engine is not used after this."""
        self.deepspeed.destroy()


def _import_deepspeed() -> Any:
    """DeepSpeed with its start-up chatter off; it looks for an accelerator while it is imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    return deepspeed
