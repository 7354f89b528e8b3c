"""Compares all nodes before time is spent: over ssh, or, without ssh, among the ranks of a process group.

Over ssh each node runs this module: it says its facts, then tries to reach the other nodes. One JSON line out (facts),
one in (the other nodes' addresses), one out (those not reached), then it waits for the end of its input: its ports stay
open until every node has tried them.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_megatron.errors import EnvironmentFault, KdError
from kd_megatron.launch import facts
from kd_megatron.launch.node import address_of, interface_to, split_address
from kd_megatron.launch.ssh import Host, failure, in_repository, passed_environment, ssh_command

PATIENCE_SECONDS = 90.0  # for one node's answer
REACH_SECONDS = 5.0  # in which one node connects to another
ANSWER = "KD answer: "  # begins what a node says for `Asked`


class Asked:
    """One node that is asked over ssh, where `main` answers."""

    def __init__(self, host: Host, rank: int, master: str, command: Sequence[str]) -> None:
        self.host = host
        words = [".venv/bin/python", "-m", "kd_megatron.launch.preflight", "--master", master, "--rank", str(rank)]
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

    if facts.num_nodes() == 1 or dist.world_size() == 1:
        return
    own = None
    if os.environ["LOCAL_RANK"] == "0":
        own = (facts.node_name(), {"same": facts.same_everywhere(command), "problems": facts.problems()})
    spoken = [answer for answer in dist.gather(own) if answer is not None]
    refuse_the_odd_ones(dict(spoken))


def main() -> int:
    """Answer both questions on stdout."""
    parser = argparse.ArgumentParser(prog="kd_megatron.launch.preflight")
    parser.add_argument("--master", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    said, sockets = local_facts(arguments.rank, arguments.master, arguments.command)
    answer(said)
    peers = sys.stdin.readline()
    if peers:
        answer(unreachable(said["address"], json.loads(peers)))
    sys.stdin.read()
    for listener in sockets:
        listener.close()
    return 0


def answer(content: Any) -> None:
    """One line on stdout, marked: a node's shell may print lines of its own before."""
    print(f"{ANSWER}{json.dumps(content)}", flush=True)


def local_facts(rank: int, master: str, command: list[str]) -> tuple[dict[str, Any], list[socket.socket]]:
    """This node's facts, and the sockets on which it can be reached."""
    problems, sockets = facts.problems(), []
    said: dict[str, Any] = {"free_gib": facts.free_gib(), "interface": None, "address": None, "port": None}
    try:
        address, port = split_address(master)
        named = os.environ.get("GLOO_SOCKET_IFNAME")
        said["interface"], said["address"] = (named, address_of(named)) if named else interface_to(address, port)
        sockets.append(socket.create_server((said["address"], 0), backlog=1024))
        said["port"] = sockets[0].getsockname()[1]
        if rank == 0:
            sockets.append(socket.create_server(("", port), backlog=1024))
    except OSError as error:
        problems.append(f"cannot open port {port}: {error.strerror}; to fix: set MASTER_PORT to a free one")
    except KdError as error:
        problems.append(f"has no usable network: {error}")
    return {"same": facts.same_everywhere(command), "problems": problems, **said}, sockets


def unreachable(own_address: str, peers: dict[str, tuple[str, int]]) -> list[str]:
    """The names of the ``peers`` to which no connection from ``own_address`` comes about."""

    def fails(peer: tuple[str, int]) -> bool:
        try:
            socket.create_connection((peer[0], peer[1]), REACH_SECONDS, source_address=(own_address, 0)).close()
        except OSError:
            return True
        return False

    with ThreadPoolExecutor(16) as pool:
        failed = list(pool.map(fails, peers.values()))
    return [name for name, bad in zip(peers, failed, strict=True) if bad]


if __name__ == "__main__":
    sys.exit(main())
