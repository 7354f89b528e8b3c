"""What the peers share: the task, the data, and steps taken one at a time, on request.

A peer is a program that trains the way its library's documentation says, with one callback more: between two optimizer
steps it waits for a line on its standard input. So that a turn has all that a step costs, the loader included, it ends
where the next step is about to begin. Imports nothing of kd_megatron: it may run in another environment.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version

NUM_WARMUP_STEPS = 2
# Of the trainer's arguments, all but these are as the library has them. Nothing is saved, reported or drawn.
QUIET = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "max_steps": 1_000_000}

# Standard output belongs to the turns: what a library prints goes to standard error.
_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(line: str) -> None:
    """Answer the benchmark."""
    _answers.write(line + "\n")
    _answers.flush()


def task() -> dict:
    """What is to be done, as `benchmarks/steps/peers.py` describes it."""
    return json.loads(sys.argv[1])


def require(*packages: str) -> str:
    """Name and version of the first of ``packages``; ends the program, with the reason, when one is not installed."""
    for name in packages:
        try:
            version(name)
        except PackageNotFoundError:
            say(f"absent the package {name} is not installed for {sys.executable} (see bench --help, --peer-python)")
            sys.exit(0)
    return f"{packages[0]} {version(packages[0])}"


def arguments(given: dict) -> dict:
    """Arguments of a Hugging Face trainer: batch, precision and learning rate of the task."""
    import torch

    torch.set_num_threads(given["num_threads"])
    return {
        **QUIET,
        "output_dir": "peer_output",
        "per_device_train_batch_size": given["micro_batch_size"],
        "gradient_accumulation_steps": given["global_batch_size"] // given["micro_batch_size"],
        "learning_rate": given["learning_rate"],
        "bf16": given["bf16"],
        "use_cpu": not torch.cuda.is_available(),
    }


def in_turns(name: str):
    """The callback that makes a trainer wait for its turns."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step < NUM_WARMUP_STEPS:
                return
            _wait_for_device()
            say(f"ready {name}" if state.global_step == NUM_WARMUP_STEPS else "done")
            if not sys.stdin.readline():  # the benchmark has ended
                os._exit(0)

    return Turns()


def _wait_for_device() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Windows:
    """The windows as the examples of a tokenized data set."""

    def __init__(self, path: str, special_ids: list[int] | None = None) -> None:
        import numpy as np

        self.rows = np.load(path)
        self.special_ids = special_ids

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        ids = self.rows[index].tolist()
        example = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        if self.special_ids is not None:  # as `run_mlm.py` has it, so that the collator need not work it out
            example["special_tokens_mask"] = [int(token in self.special_ids) for token in ids]
        return example
