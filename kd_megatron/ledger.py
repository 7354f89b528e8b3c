"""The ledger: what a run has spent, by account and in every unit, and when its budget is used up.

docs/fairness.md, clauses 3-5: wall-clock seconds, FLOPs and tokens are charged together; the recipe names the unit
that ends a run and the accounts that count. Rank 0's clock decides, and its decision is broadcast.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from kd_megatron.recipe import Account, BudgetRecipe

ACCOUNTS: tuple[str, ...] = get_args(Account)


@dataclass
class Entry:
    """One account: wall-clock seconds of rank 0, the same times the devices there were, and FLOPs of all ranks."""

    seconds: float = 0.0
    device_seconds: float = 0.0
    flops: float = 0.0


@dataclass
class Ledger:
    """What has been spent since the run began, through all resumes."""

    num_devices: int = 1  # now; a resume may have another number than the run began with
    accounts: dict[str, Entry] = field(default_factory=lambda: {name: Entry() for name in ACCOUNTS})
    tokens: int = 0  # processed by the student, repeats counted
    unique_tokens: int = 0  # distinct tokens of the pool that were read
    steps: int = 0
    overshoot: float = 0.0  # of the budget, in its unit, when the run ended
    _inner_seconds: list[float] = field(default_factory=list, repr=False, compare=False)
    _settle: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def settle_with(self, wait: Callable[[], None]) -> None:
        """Call ``wait`` where a clock starts and stops: what a device still does goes to the account it began in."""
        self._settle = wait

    @contextlib.contextmanager
    def clock(self, account: str) -> Iterator[None]:
        """Charge the wall-clock time of the ``with`` block to ``account``; a nested clock's time goes to its own."""
        if self._settle is not None:
            self._settle()
        start = time.perf_counter()
        self._inner_seconds.append(0.0)
        try:
            yield
        finally:
            if self._settle is not None:
                self._settle()
            elapsed = time.perf_counter() - start
            self.charge_seconds(account, elapsed - self._inner_seconds.pop())
            if self._inner_seconds:
                self._inner_seconds[-1] += elapsed

    @contextlib.contextmanager
    def uncharged(self) -> Iterator[None]:
        """Forget what is charged in the ``with`` block: it is no part of training."""
        before = self.to_dict()
        try:
            yield
        finally:
            self.restore(before)

    def charge_seconds(self, account: str, seconds: float) -> None:
        """Charge ``seconds`` that no clock of this run measured, or take them back when negative."""
        self.accounts[account].seconds += seconds
        self.accounts[account].device_seconds += seconds * self.num_devices

    def charge_flops(self, account: str, flops: float) -> None:
        """Charge ``flops`` (all ranks together) to ``account``."""
        self.accounts[account].flops += flops

    def spent(self, budget: BudgetRecipe) -> float:
        """What the charged accounts have spent, in the budget's unit."""
        if budget.unit == "tokens":
            return float(self.tokens)
        if budget.unit == "flops":
            return sum(self.accounts[name].flops for name in budget.charge)
        accounts = [self.accounts[name] for name in budget.charge]
        if budget.unit == "gpu_hours":
            return sum(entry.device_seconds for entry in accounts) / 3600.0
        return sum(entry.seconds for entry in accounts) / 3600.0

    def fraction(self, budget: BudgetRecipe) -> float:
        """Share of the budget that is spent; 1.0 or more ends the run. Of calibrated budgets, by the steps they fix."""
        if budget.calibrated is not None:
            return self.steps / budget.calibrated.steps
        return self.spent(budget) / budget.limit

    def seconds(self, *names: str) -> float:
        """Wall-clock seconds of the named accounts (all when none is named)."""
        return sum(self.accounts[name].seconds for name in names or ACCOUNTS)

    def flops(self, *names: str) -> float:
        """FLOPs of the named accounts (all when none is named)."""
        return sum(self.accounts[name].flops for name in names or ACCOUNTS)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``ledger.json`` and checkpoints."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `to_dict` wrote, in place: the clocks of a run share one ledger.

        The number of devices stays this process group's own: what was spent before is not spent again on more of them.
        """
        for name in ("tokens", "unique_tokens", "steps", "overshoot"):
            setattr(self, name, data[name])
        for name in ACCOUNTS:
            entry = data["accounts"].get(name, {})
            before = {"device_seconds": entry.get("seconds", 0.0) * data["num_devices"]}  # of files without the key
            self.accounts[name] = Entry(**before | entry)
