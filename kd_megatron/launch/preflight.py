"""Compares all nodes before time is spent: over ssh, or, without ssh, among the ranks of a process group."""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_megatron.errors import EnvironmentFault
from kd_megatron.launch import facts
from kd_megatron.launch.serve import ANSWER
from kd_megatron.launch.ssh import Host, failure, in_repository, passed_environment, ssh_command

PATIENCE_SECONDS = 90.0  # for one node's answer


class Asked:
    """One node that is asked over ssh (see `kd_megatron.launch.serve` for its side)."""

    def __init__(self, host: Host, rank: int, master: str, command: Sequence[str]) -> None:
        self.host = host
        words = [".venv/bin/python", "-m", "kd_megatron.launch.serve", "--master", master, "--rank", str(rank)]
        remote = in_repository([*words, *command], passed_environment())
        self.process = subprocess.Popen(
            ssh_command(host.name, remote),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.timer = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def answer(self) -> Any:
        """Its next line; raises `EnvironmentFault` when it ended without one."""
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith(ANSWER)), None)
        if line is None:
            _, stderr = self.process.communicate()
            code = self.process.returncode
            why = failure(code, stderr) if code >= 0 else f"has not answered within {PATIENCE_SECONDS:g} s"
            raise EnvironmentFault(given=f"{self.host.name} {why}")
        return json.loads(line.removeprefix(ANSWER))

    def ask(self, question: Any) -> Any:
        """Send one line and return the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended, which `answer` tells of
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End its input, and with it the process."""
        self.timer.cancel()
        try:
            self.process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            self.process.kill()


def over_ssh(hosts: Sequence[Host], master: str, command: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The facts of every node; raises `EnvironmentFault` naming each node that does not answer, fit or get through."""
    asked = [Asked(host, rank, master, command) for rank, host in enumerate(hosts)]
    try:
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = dict(zip([host.name for host in hosts], pool.map(_first_answer, asked), strict=True))
            facts.refuse([answer for answer in answers.values() if isinstance(answer, str)])
            refuse_the_odd_ones(answers)
            unreached = pool.map(lambda node: node.ask(_peers(answers, node.host.name)), asked)
            facts.refuse(
                [
                    f"{host.name} cannot reach {name} at {answers[name]['address']}: is a firewall between them?"
                    for host, names in zip(hosts, unreached, strict=True)
                    for name in names
                ]
            )
        return answers
    finally:
        for node in asked:
            node.close()


def _first_answer(node: Asked) -> Any:
    try:
        return node.answer()
    except EnvironmentFault as error:
        return error.given


def _peers(answers: dict[str, dict[str, Any]], own: str) -> dict[str, tuple[str, int]]:
    return {name: (answer["address"], answer["port"]) for name, answer in answers.items() if name != own}


def refuse_the_odd_ones(answers: dict[str, dict[str, Any]]) -> None:
    """Raise `EnvironmentFault` with the problems of each node and the differences between them, if there are any."""
    problems = [f"{name} {line}" for name, answer in answers.items() for line in answer["problems"]]
    facts.refuse(problems + facts.differences({name: answer["same"] for name, answer in answers.items()}))


def compare_nodes(command: Sequence[str]) -> None:
    """Within a process group: compare the nodes (one rank of each speaks). Collective; nothing to do on one node.

    Args:
        command: the recipe's path and the overrides.

    Raises:
        EnvironmentFault: on every rank, with the same message.
    """
    from kd_megatron.ranks import dist

    if int(os.environ.get("CROSS_SIZE", "1")) == 1 or dist.world_size() == 1:  # set by deepspeed's launcher
        return
    own = None
    if os.environ["LOCAL_RANK"] == "0":
        own = (facts.node_name(), {"same": facts.same_everywhere(command), "problems": facts.disk_problems()})
    spoken = [answer for answer in dist.gather(own) if answer is not None]
    refuse_the_odd_ones(dict(spoken))
