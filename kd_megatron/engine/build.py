"""A DeepSpeed engine around the student: one optimizer recipe for all arms, any ZeRO stage.

The engine does what DeepSpeed is for (partitioning, mixed precision, reduction). What makes arms comparable stays
ours: the loss is normalised by global counts before it gets here, the learning rate is set at every step, and nothing
is updated from the first loss or gradient on that is not finite. Nothing here makes the host wait for the device
(docs/numerics.md says where DeepSpeed still does).
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_megatron.engine import confine
from kd_megatron.engine.batch_split import split
from kd_megatron.engine.optimizer import MasterAdamW
from kd_megatron.engine.reduction import OverlappedReduction
from kd_megatron.errors import RecipeError, nearest
from kd_megatron.ranks import dist
from kd_megatron.recipe import TrainingRecipe

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
REDUCED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16}  # gradients on their way between processes
MOST_LOOKED_AT = 2**20  # weights, where a share of all is measured
OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler",
        "bf16", "fp16", "gradient_clipping", "communication_data_type")  # fmt: skip


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


def is_in_pieces(recipe: TrainingRecipe) -> bool:
    """Whether no process holds all weights: ZeRO stage 3."""
    return bool(read_ds_config(recipe.ds_config).get("zero_optimization", {}).get("stage", 0) == 3)


def refuse_compile_in_pieces(recipe: TrainingRecipe) -> None:
    """ZeRO-3 gathers each weight in a hook around its module, which compiled code would go round."""
    if recipe.is_compiled and is_in_pieces(recipe):
        raise RecipeError(
            given=f"training.compile with training.ds_config {recipe.ds_config!r} (ZeRO stage 3)",
            expected="compile at stages 0 to 2, where every process holds all weights",
            fix="set training.compile to false, or take a smaller stage",
        )


def _deepspeed_config(recipe: TrainingRecipe, num_trained: int) -> dict[str, Any]:
    refuse_compile_in_pieces(recipe)
    config = read_ds_config(recipe.ds_config)
    zero, batch = config["zero_optimization"], split(recipe, dist.world_size())
    config["communication_data_type"] = recipe.gradient_reduction
    if "reduce_bucket_size" in zero:  # a buffer of this size is made, whether there is so much to reduce or not
        zero["reduce_bucket_size"] = min(zero["reduce_bucket_size"], num_trained)
    clips = _deepspeed_clips(zero)
    if zero["stage"] in (1, 2) and not clips:
        zero["compute_grad_norm"] = False
    if not _keeps_masters(recipe, zero):
        config["optimizer"] = {"type": "AdamW", "params": _adam_options(recipe) | {"torch_adam": True, "fused": True}}
    config.update(
        train_batch_size=recipe.global_batch_size,
        train_micro_batch_size_per_gpu=batch.size,
        gradient_accumulation_steps=batch.count,
        gradient_clipping=recipe.gradient_clipping if clips else 0.0,
        steps_per_print=10**9,
        timers={"throughput": {"enabled": False}},  # it waits for the device twice a step
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        bf16={"enabled": recipe.precision == "bf16" and zero["stage"] > 0, "check_grad_overflow": clips},
    )
    return config


def _deepspeed_clips(zero: dict[str, Any]) -> bool:
    """Whether DeepSpeed computes the gradient norm, checks it and clips: where gradients are out of our reach."""
    return zero["stage"] == 3 or "offload_optimizer" in zero


def _is_offloaded(zero: dict[str, Any]) -> bool:
    """Whether the optimizer's weights and state lie in the memory of the host."""
    return zero.get("offload_optimizer", {}).get("device", "none") != "none"


def _keeps_masters(recipe: TrainingRecipe, zero: dict[str, Any]) -> bool:
    """Whether the float32 masters of bfloat16 weights are ours."""
    return recipe.precision == "bf16" and zero["stage"] == 0


def _adam_options(recipe: TrainingRecipe) -> dict[str, Any]:
    return {"lr": recipe.learning_rate, "betas": tuple(recipe.betas), "eps": recipe.epsilon}


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
        deepspeed = start_deepspeed()
        self.recipe = recipe
        config = _deepspeed_config(recipe, sum(p.numel() for p in module.parameters() if p.requires_grad))
        masters = _keeps_masters(recipe, config["zero_optimization"])
        if masters:
            for parameter in module.parameters():
                parameter.data = parameter.data.bfloat16()
        groups = parameter_groups(module, recipe.weight_decay)
        with confine.linear_confined_to(module):
            self.deepspeed, *_ = deepspeed.initialize(
                model=module,
                model_parameters=groups,
                optimizer=MasterAdamW(groups, **_adam_options(recipe)) if masters else None,
                config=config,
            )
        dist.bound_timeouts()
        self._deepspeed_clips = _deepspeed_clips(config["zero_optimization"])
        self._is_offloaded = _is_offloaded(config["zero_optimization"])
        self._adam = self.deepspeed.basic_optimizer
        self._trained = [parameter for group in groups for parameter in group["params"]]
        self._reduction: OverlappedReduction | None = None
        if self.zero_stage == 0:
            self.deepspeed.enable_backward_allreduce = False  # it is ours, and goes on during the backward pass
            in_order = [parameter for parameter in module.parameters() if parameter.requires_grad]
            self._reduction = OverlappedReduction(in_order, REDUCED_IN[recipe.gradient_reduction])
        if self.zero_stage == 3:
            for parameter in read_directly:
                deepspeed.zero.register_external_parameter(module, parameter)
        if self._deepspeed_clips and hasattr(self.deepspeed.optimizer, "check_grad_overflow"):
            self.deepspeed.optimizer.check_grad_overflow = True  # for fp32, which has no such key

    @property
    def module(self) -> nn.Module:
        """The module that was given."""
        return self.deepspeed.module

    @property
    def zero_stage(self) -> int:
        """0 to 3."""
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def device(self) -> torch.device:
        """Where the student computes."""
        return torch.device(self.deepspeed.device)

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """Run the module; under ZeRO-3 this gathers the parameters it needs."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``, this rank's part of the globally normalised loss.

        Gradients are averaged over ranks; we own the normalisation, so the factor is taken back here.
        """
        reduction = self._reduction if self.deepspeed.is_gradient_accumulation_boundary() else None
        if reduction is not None:
            reduction.begin()
        self.deepspeed.backward(loss * dist.world_size(), scale_wrt_gas=False)
        if reduction is not None:
            reduction.finish()

    def end_micro_batch(self) -> None:
        """Tell DeepSpeed that a micro-batch other than the last one is done."""
        self.deepspeed.step()

    def update(self, learning_rate: float, bad: Tensor) -> Tensor:
        """Clip and update the weights; return the global gradient norm before clipping, a scalar on the device.

        Args:
            bad: float32 scalar on the device, the same on every rank. While it is 1 the optimizer leaves weights and
                state as they are; it becomes 1 here when the norm is not finite.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None if self._deepspeed_clips else self._gradient_norm()
        if norm is not None:
            _mark_unless_finite(bad, norm)
            if self.recipe.gradient_clipping > 0.0:  # the fused kernel divides gradients by this
                self._adam.grad_scale = ((norm + 1e-6) / self.recipe.gradient_clipping).clamp(min=1.0)
        # torch takes it to the weights without waiting: where these lie on the host, it is read before it has come.
        self._adam.found_inf = bad.cpu() if self._is_offloaded else bad
        self.deepspeed.step()
        if norm is None:  # DeepSpeed left out the update if it found the norm to be infinite, and says so by the norm
            norm = torch.as_tensor(self.deepspeed.get_global_grad_norm(), dtype=torch.float32, device=self.device)
            _mark_unless_finite(bad, norm)
        return norm

    def epsilon_share(self) -> Tensor:
        """The share of the last update that Adam's epsilon took away, a float64 scalar on the CPU. Collective.

        With epsilon an update is ``m / (sqrt(v) + epsilon)``, without ``m / sqrt(v)`` (Kingma and Ba 2015, arXiv
        1412.6980, algorithm 1); the share is 1 minus the ratio of their sums of sizes. Looked at are at most
        `MOST_LOOKED_AT` weights of each rank, evenly spaced. 0 before the first update.
        """
        moments = [state for state in self._adam.state.values() if "exp_avg_sq" in state]
        stride = max(1, sum(state["exp_avg"].numel() for state in moments) // MOST_LOOKED_AT)
        beta = self._adam.param_groups[0]["betas"][1]
        sums = torch.zeros(2, dtype=torch.float64)
        for state in moments:
            first, second = (state[name].detach().flatten()[::stride].double() for name in ("exp_avg", "exp_avg_sq"))
            root = (second / (1.0 - beta ** float(state["step"]))).sqrt()
            size = first.abs()
            moved = root > 0.0  # a weight without a gradient so far does not move either way
            sums += torch.stack([(size / (root + self.recipe.epsilon))[moved].sum(), (size / root)[moved].sum()]).cpu()
        kept, whole = dist.all_reduce(sums).unbind()
        return torch.where(whole > 0.0, 1.0 - kept / whole.clamp(min=1e-300), torch.zeros_like(whole))

    def _gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, after its reduction over ranks; each partition lies on one rank."""
        if self.zero_stage == 0:
            gradients = [p.grad for p in self._trained if p.grad is not None]
        else:
            gradients = [g for group in self.deepspeed.optimizer.averaged_gradients.values() for g in group]
        squares = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)).square().sum()
        return (squares if self.zero_stage == 0 else dist.all_reduce(squares)).sqrt()

    def full_weight(self, parameter: nn.Parameter) -> Tensor:
        """A parameter of the module, whole, float32, on the CPU. Collective under ZeRO.

        Trained parameters come from the float32 masters; those left out of the optimizer from the model itself.
        """
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        full = None
        if isinstance(self._adam, MasterAdamW):
            full = self._adam.master(parameter)
        elif parameter.requires_grad:
            full = safe_get_full_fp32_param(parameter)
        if full is None:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                return on_host(parameter)
        return on_host(full)

    def full_weights(self) -> dict[str, Tensor]:
        """Every parameter of the module by name, as `full_weight` gives it."""
        return {name: self.full_weight(parameter) for name, parameter in self.module.named_parameters()}

    def close(self) -> None:
        """Free what DeepSpeed holds; an engine is not used after this."""
        if self._reduction is not None:
            self._reduction.close()
        self.deepspeed.destroy()
        confine.release(self.module)


def on_host(values: Tensor) -> Tensor:
    """A float32 copy on the CPU, which nothing else holds: the values are copied once, wherever they are."""
    return torch.empty(values.shape, dtype=torch.float32).copy_(values.detach())


def _mark_unless_finite(bad: Tensor, value: Tensor) -> None:
    """Set ``bad`` to 1, without the host, when ``value`` is NaN or infinite."""
    bad.copy_(torch.maximum(bad, value.isfinite().logical_not().to(bad.dtype)))


def start_deepspeed() -> Any:
    """DeepSpeed, in our process group, with its start-up chatter off. Collective at its first call."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it looks for an accelerator while it is imported
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # The shared-memory op compiles at first use, and a killed run leaves a lock that hangs every later one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    kept = deepspeed.utils.groups  # of the first process group it met, also when that was left and another one joined
    if kept._WORLD_GROUP is not None and kept._WORLD_GROUP not in torch.distributed.distributed_c10d._world.pg_map:
        kept._release_process_group_references()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), verbose=False)
    return deepspeed
