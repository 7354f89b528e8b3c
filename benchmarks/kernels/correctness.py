"""Every backend's terms and gradients against the reference in float64 on the same inputs: no figure on a red test."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, Inputs
from benchmarks.kernels.steps import EAGER, Result, forward_backward, loss_weights, terms_of, trained
from kd_megatron.errors import KdError


@dataclass(frozen=True)
class Tolerance:
    """The largest error, as a share of the largest entry, beyond `EAGER_FACTOR` times eager's in the same dtype."""

    terms: float
    gradient: float


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Where eager loses digits, computing in float32 too (scores near 70 nats), so may a backend: the same order, no more.
EAGER_FACTOR = 4.0
TOLERANCES = {
    # 2^-24 per operation, grown by sums over up to some thousand entries in another order.
    torch.float32: Tolerance(terms=1e-5, gradient=2e-5),
    # Inputs count as exact. Matrix instructions read the gradient of scores or logits rounded to 2^-9: two units beside
    # the rounding of the result, which eager does too. Terms keep float32, but for logits that a library rounds.
    torch.bfloat16: Tolerance(terms=1e-3, gradient=4e-3),
}


@dataclass(frozen=True)
class Check:
    """One tensor of one backend against float64."""

    name: str
    backend: str
    shape: str
    dtype: str
    tensor: str  # "terms" or the input whose gradient it is
    error: float  # of the largest entry of the exact tensor
    allowed: float
    padding_is_zero: bool = True

    @property
    def passed(self) -> bool:
        """False also for an error that is not a number."""
        return self.error <= self.allowed and self.padding_is_zero


class Examiner:
    """Compares backends with float64 on the inputs of one case; what is exact is computed once."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.dtype = case, dtype
        self.inputs = case.inputs(dtype, device)
        self.exact = _tensors(case, _widened(self.inputs), EAGER)
        eager = _tensors(case, self.inputs, EAGER)
        self.eager_errors = {name: relative_error(eager[name], exact) for name, exact in self.exact.items()}

    def check(self, backend: str, compiler: str = "inductor") -> list[Check]:
        """One check for the terms and one for each gradient."""
        found = _tensors(self.case, self.inputs, backend, compiler)
        return [self._check(backend, name, found[name]) for name in self.exact]

    def _check(self, backend: str, name: str, found: Tensor) -> Check:
        tolerance = TOLERANCES[self.dtype]
        floor = tolerance.terms if name == "terms" else tolerance.gradient
        return Check(
            name=self.case.name,
            backend=backend,
            shape=self.case.shape,
            dtype=dtype_name(self.dtype),
            tensor=name,
            error=relative_error(found, self.exact[name]),
            allowed=floor + EAGER_FACTOR * self.eager_errors[name],
            padding_is_zero=self._padding_is_zero(name, found),
        )

    def _padding_is_zero(self, name: str, found: Tensor) -> bool:
        valid = self.inputs.get("valid")
        return name == "terms" or valid is None or not found[~valid].count_nonzero().item()


def agreement(case: Case, backend: str, inputs: Inputs, found: Result, eager: Result) -> list[Check]:
    """A backend's result beside eager's at the shape to be timed, where float64 would be too large: both may err."""
    dtype = next(iter(trained(inputs).values())).dtype
    tolerance = TOLERANCES[dtype]
    named = zip(["terms", *trained(inputs)], [found[0], *found[1]], [eager[0], *eager[1]], strict=True)
    return [
        Check(
            name=case.name,
            backend=backend,
            shape=case.shape,
            dtype=dtype_name(dtype),
            tensor=name,
            error=relative_error(ours, theirs),
            allowed=(1 + EAGER_FACTOR) * (tolerance.terms if name == "terms" else tolerance.gradient),
        )
        for name, ours, theirs in named
    ]


def _widened(inputs: Inputs) -> Inputs:
    return {
        name: tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }


def _tensors(case: Case, inputs: Inputs, backend: str, compiler: str = "inductor") -> dict[str, Tensor]:
    terms, gradients = forward_backward(inputs, terms_of(case, backend, compiler), loss_weights(case, inputs))
    return {"terms": terms, **dict(zip(trained(inputs), gradients, strict=True))}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest deviation as a share of the largest entry; the deviation itself where all of ``exact`` is 0."""
    deviation = (found - exact).abs().max().item()
    largest = exact.abs().max().item()
    return deviation / largest if largest else deviation


def dtype_name(dtype: torch.dtype) -> str:
    """fp32 or bf16, as recipes write it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def refuse_red(checks: list[Check]) -> None:
    """Raise `KdError` naming the worst check, unless all passed."""
    red = [check for check in checks if not check.passed]
    if not red:
        return
    worst = max(red, key=lambda check: (check.error != check.error, check.error / check.allowed))
    fault = f"is off by {worst.error:.1e} of its largest entry"
    if not worst.padding_is_zero:
        fault += " and is not zero at padding"
    what = "its terms" if worst.tensor == "terms" else f"the gradient of {worst.tensor}"
    raise KdError(
        given=f"{worst.name}, backend {worst.backend!r}, {worst.shape}, {worst.dtype}: {what} {fault} "
        f"({len(red)} of {len(checks)} checks fail)",
        expected=f"at most {worst.allowed:.1e}, against the reference in float64; nothing is timed otherwise",
        fix=f"correct the kernel; ./launch.sh test tests/kernels -k {worst.name} tells more",
    )
