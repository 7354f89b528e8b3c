"""Other programs that train the same models on the same windows, each in a process of its own, step by step on request.

The programs are `benchmarks/peers/*.py`; what they share, the turns included, is `benchmarks/peers/turns.py`. A peer
waits at its standard input between turns, so it takes no processor time from the others.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.steps.variants import batch_shape
from kd_megatron.console.logs import say
from kd_megatron.data.loader import Loader
from kd_megatron.errors import EnvironmentFault
from kd_megatron.machine import facts
from kd_megatron.models.build import student_config
from kd_megatron.objectives import of_arm
from kd_megatron.objectives.minilm import MiniLmOptions
from kd_megatron.recipe import StudyRecipe
from kd_megatron.study.effective import run_recipe
from kd_megatron.training.setup import special_ids

PROGRAMS = facts.ROOT / "benchmarks/peers"
NUM_WINDOWS = 4096
HUGGING_FACE_BATCH = 16
TAIL_CHARACTERS = 2000  # of a peer's messages, quoted when it fails


@dataclass(frozen=True)
class PeerTask:
    """What a peer is told: JSON on its command line."""

    student: str  # directory with a config.json
    teacher: str | None  # directory in Hugging Face format
    tokenizer: str
    windows: str  # .npy, [N, L] token ids, whole windows
    global_batch_size: int
    micro_batch_size: int
    learning_rate: float
    bf16: bool
    num_threads: int
    num_relation_heads: int | None = None


@dataclass(frozen=True)
class Rival:
    """A peer to be started: ``program`` does ``task``; its speed is relative to our arm ``ratio_to``."""

    name: str
    program: str
    ratio_to: str
    task: PeerTask


class Peer:
    """A started peer, ready for its turns."""

    def __init__(self, rival: Rival, length: int, process: "subprocess.Popen[str]", version: str) -> None:
        self.name, self.ratio_to, self.version = rival.name, rival.ratio_to, version
        task = rival.task
        heads = f" R{task.num_relation_heads}" * (task.num_relation_heads is not None)
        # The split comes last, in brackets, as in our own rows.
        size, bracket, split = batch_shape(task.global_batch_size, length, task.micro_batch_size).partition(" (")
        self.shape, self.dtype = size + heads + bracket + split, "bf16" if task.bf16 else "fp32"
        self.num_tokens = task.global_batch_size * length
        self._process = process

    @property
    def key(self) -> str:
        """Unlike that of any other peer of the run."""
        return f"{self.name} {self.shape} {self.dtype}"

    def step(self) -> None:
        """One optimizer step of the peer."""
        if answer(self._process, "step") != "done":
            raise EnvironmentFault(given=f"{self.key} ended in the middle of the benchmark", fix="leave out --peers")

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()


def answer(process: "subprocess.Popen[str]", request: str) -> str:
    """Send one line and wait for one line; "" when the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline().strip()


@contextmanager
def started(recipe: StudyRecipe, teacher: str | None, python: str | None) -> Iterator[list[Peer]]:
    """All peers that can run, warm. Those that cannot are named with the reason.

    Args:
        recipe: with ``precision`` decided; the batch of each arm is the one it has here.
        python: the interpreter that has the peers' packages; None is this one.
    """
    python = interpreter(python)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = []
        for rival in rivals(recipe, teacher, directory):
            peer = _start(rival, recipe.data.sequence_length, python, directory)
            if peer is not None:
                stack.callback(peer.close)
                peers.append(peer)
        yield peers


def rivals(recipe: StudyRecipe, teacher: str | None, directory: Path) -> list[Rival]:
    """Hugging Face's Trainer beside scratch, at its own usual batch and at ours; bertdistiller beside each minilm arm.

    bertdistiller runs at its defaults, which are float32, and where we train in bf16 in bf16 too.
    """
    found = []
    for arm in recipe.arms:
        study = run_recipe(recipe, arm, recipe.seeds[0])
        options = of_arm.parse_options(study.arms[arm], where=f"arms.{arm}")
        bf16 = study.training.precision == "bf16"
        if options.objective == "scratch":
            task = _task(study, None, directory, bf16)
            usual = _with_batch(task, HUGGING_FACE_BATCH)
            found += [Rival("peer/huggingface_trainer", "huggingface_trainer", arm, each) for each in {usual, task}]
        if isinstance(options, MiniLmOptions) and not options.as_coded and teacher is not None:
            for precision in sorted({False, bf16}):
                task = _task(study, teacher, directory, precision, options.num_relation_heads)
                found.append(Rival("peer/bertdistiller", "minilm_bertdistiller", arm, task))
    return found


def _with_batch(task: PeerTask, size: int) -> PeerTask:
    return PeerTask(**{**asdict(task), "global_batch_size": size, "micro_batch_size": size})


def _task(
    study: StudyRecipe, teacher: str | None, directory: Path, bf16: bool, num_relation_heads: int | None = None
) -> PeerTask:
    loader = Loader(study.data, study.seeds[0])
    windows, student = directory / "windows.npy", directory / "student"
    if not windows.exists():
        np.save(windows, loader.batch(0, min(NUM_WINDOWS, loader.num_windows)).clean_ids.numpy())
        student_config(study.student, loader.vocab_size, special_ids(loader)).save_pretrained(student)
    return PeerTask(
        student=str(student),
        teacher=teacher,
        tokenizer=str(loader.tokenizer_path.absolute()),
        windows=str(windows),
        global_batch_size=study.training.global_batch_size,
        micro_batch_size=study.training.micro_batch_size,
        learning_rate=study.training.learning_rate,
        bf16=bf16,
        num_threads=torch.get_num_threads(),
        num_relation_heads=num_relation_heads,
    )


def _start(rival: Rival, length: int, python: str, directory: Path) -> Peer | None:
    """Start a peer and let it take its first steps; None, with a message, when it cannot run."""
    found = launch(rival.name, rival.program, asdict(rival.task), rival.task.num_threads, python, directory)
    return Peer(rival, length, *found) if found else None


def launch(
    name: str, program: str, task: dict[str, Any], num_threads: int, python: str, directory: Path
) -> "tuple[subprocess.Popen[str], str] | None":
    """Start ``benchmarks/peers/PROGRAM.py`` on ``task`` in ``directory`` and wait until it is ready for its turns.

    Returns:
        The process and the version of what it runs; None, with a message, when it cannot run.
    """
    path = PROGRAMS / f"{program}.py"
    if not path.is_file():
        say(f"{name} is left out: {path} is not there (it is in the repository, not in the package)")
        return None
    with tempfile.TemporaryFile(mode="w+", dir=directory) as messages:
        process = subprocess.Popen(
            [python, str(path), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            cwd=directory,
            env=environment(num_threads),
        )
        first = process.stdout.readline().strip() if process.stdout else ""
        if first.startswith("ready "):
            return process, first.removeprefix("ready ")
        process.kill()
        process.wait()
        messages.seek(0)
        reason = first.removeprefix("absent ") or messages.read()[-TAIL_CHARACTERS:].strip() or "it ended at once"
    say(f"{name} is left out: {reason}")
    return None


def interpreter(python: str | None) -> str:
    """The path of the peers' interpreter; None is this one. Not resolved: its link is what makes an environment."""
    return os.path.abspath(shutil.which(python) or python) if python else sys.executable


def environment(num_threads: int) -> dict[str, str]:
    """Ours, without what would make it a rank of our process group or import our packages."""
    foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**kept, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
