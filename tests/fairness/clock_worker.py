"""One rank of a run by the clock, in which rank 1's own clock runs five times as fast; writes what this rank did.

python clock_worker.py INPUTS OUTPUT      INPUTS: of `tiny_study`; OUTPUT: a directory
"""

import json
import sys
from pathlib import Path
from unittest import mock

from tiny_study import ARMS, tiny_study

from kd_megatron.ranks import dist
from kd_megatron.ranks.process import exit_process
from kd_megatron.training import loop
from kd_megatron.training.setup import prepare_run

NUM_TIMES = 5.0
HOURS = 0.3 / 3600


def main() -> int:
    inputs, output = map(Path, sys.argv[1:])
    with dist.joined():
        budget = {"tokens": None, "hours": HOURS}
        study = tiny_study(inputs, arms={"scratch": ARMS["scratch"]}, validation={"at": []}, budget=budget)
        run = prepare_run(study, "scratch", 0, output / "run", None)
        own, rates = run.ledger.fraction, []
        if dist.rank() == 1:
            run.ledger.fraction = lambda budget: NUM_TIMES * own(budget)  # type: ignore[method-assign]

        def noting(run, batches, rate, stop):
            rates.append(rate)
            return one_step(run, batches, rate, stop)

        one_step = loop.one_step
        with mock.patch.object(loop, "one_step", noting):
            loop.train(run)
        facts = {"steps": run.ledger.steps, "rates": rates, "own_fraction": run.ledger.fraction(study.budget)}
        (output / f"rank_{dist.rank()}.json").write_text(json.dumps(facts))
        run.close()
    return 0


if __name__ == "__main__":
    exit_process(main())
