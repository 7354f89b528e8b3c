"""``launch.sh --hosts``: preflight, then one ``launch.sh --node-rank`` on each node over ssh, watched until all end.

Signals travel as lines through the ssh connections, and their end ends the nodes: nothing here looks for processes by
name, as deepspeed's own runner does, and nothing is left when this process is killed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from kd_megatron.errors import KdError, RankLost
from kd_megatron.launch import facts, preflight
from kd_megatron.launch.node import DEFAULT_PORT
from kd_megatron.launch.ssh import (
    NOT_REACHED,
    Host,
    failure,
    in_repository,
    passed_environment,
    read_hostfile,
    ssh_command,
)
from kd_megatron.ranks.failures import lost_seconds, seconds_of

POLL_SECONDS = 0.2
ALIVE_SECONDS = 5.0  # between signs of life to the nodes, which stop without them
FOLLOW_SECONDS = 15.0  # after one node failed: time for the ranks of the others to say what they saw
RETURN_SECONDS = 300.0  # after a lost node: how long it may take to answer again
INTERRUPTED = 75


class Node:
    """One node's ``launch.sh``, over ssh. Its own session: a signal to our group must not cut the connection."""

    def __init__(self, host: Host, words: Sequence[str], environment: dict[str, str]) -> None:
        self.host = host
        self.process = subprocess.Popen(
            ssh_command(host.name, in_repository(words, environment)), stdin=subprocess.PIPE, start_new_session=True
        )

    def send(self, word: str) -> None:
        """Tell its launch.sh to pass on a signal (TERM, USR1, INT), or to kill all it started (KILL)."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        except OSError:  # it has ended
            return

    def close(self) -> None:
        """Cut the connection: the node ends what it runs."""
        self.process.kill()
        self.process.wait()


def main() -> int:
    """Run a command on all nodes and return the exit code that tells most."""
    parser = argparse.ArgumentParser(prog="kd_megatron.launch.hosts")
    parser.add_argument("--hostfile", required=True)
    parser.add_argument("--run", required=True, help="a name of this call of launch.sh")
    parser.add_argument("--attempt", type=int, default=0, help="how many attempts went before")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except KdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Wait for the nodes after a failure, compare them, start them, watch them."""
    hosts = read_hostfile(arguments.hostfile)
    address = os.environ.get("MASTER_ADDR") or hosts[0].name.rpartition("@")[2]
    master = f"{address}:{os.environ.get('MASTER_PORT', DEFAULT_PORT)}"
    calls = [node_call(hosts, rank, master, arguments.command) for rank in range(len(hosts))]
    if arguments.dry_run:
        for host, words in zip(hosts, calls, strict=True):
            print(shlex.join(ssh_command(host.name, in_repository(words, passed_environment()))))
        return 0
    if arguments.attempt:
        wait_for_return(hosts, arguments.run)
    if arguments.command[0] == "preflight":
        facts.require_recipe([word for word in arguments.command[1:] if not word.startswith("-")])
    answers = preflight.over_ssh(hosts, master, arguments.command)
    if arguments.command[0] == "preflight":
        if "--json" in arguments.command:
            print(json.dumps(answers))
            return 0
        for name, answer in answers.items():
            print(f"{name}: {answer['address']} on {answer['interface']}, {answer['free_gib']:.1f} GiB free")
        print(f"{len(hosts)} nodes agree: " + ", ".join(f"{k} {v}" for k, v in answers[hosts[0].name]["same"].items()))
        return 0
    run_id = f"{arguments.run}.{arguments.attempt}"
    environment = passed_environment() | {"KD_STDIN_SIGNALS": "1", "KD_RUN_ID": run_id}
    nodes = [Node(host, words, environment | {"KD_NODE": host.name}) for host, words in zip(hosts, calls, strict=True)]
    try:
        return watch(nodes)
    finally:
        for node in nodes:
            node.close()


def node_call(hosts: Sequence[Host], rank: int, master: str, command: Sequence[str]) -> list[str]:
    """What is called on the node of ``rank``."""
    slots = ",".join(str(host.slots) for host in hosts)
    nodes = ["--node-rank", str(rank), "--num-nodes", str(len(hosts)), "--master", master, "--procs", slots]
    return ["./launch.sh", *nodes, *command]


def wait_for_return(hosts: Sequence[Host], run: str) -> None:
    """Until every node answers ssh again, and nothing of the attempt before runs there any more.

    Raises `RankLost` after KD_RETURN_SECONDS: another attempt may find them.
    """
    patience = seconds_of("KD_RETURN_SECONDS", RETURN_SECONDS)
    deadline = time.monotonic() + patience
    words = [".venv/bin/python", "-m", "kd_megatron.launch.leftovers", run]
    say(f"waiting until all {len(hosts)} nodes answer (at most {patience:g} s)")

    def why_not(host: Host) -> str:
        why = "was not asked"
        while time.monotonic() < deadline:
            call = ssh_command(host.name, in_repository(words, {}))
            done = subprocess.run(call, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode == 0:
                return ""
            why = failure(done.returncode, done.stderr)
            time.sleep(2.0)
        return f"{host.name} {why}"

    with ThreadPoolExecutor(len(hosts)) as pool:
        missing = [why for why in pool.map(why_not, hosts) if why]
    if missing:
        raise RankLost(
            given="after the failure, not every node came back:\n  " + "\n  ".join(missing),
            expected=f"all nodes within {patience:g} s (KD_RETURN_SECONDS)",
            fix="repair or replace them in the hostfile, then run the same command: it resumes",
        )


def watch(nodes: Sequence[Node]) -> int:
    """Until every node has ended. When one fails, the others soon end too: alone they could only wait for it."""
    asked: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: asked.append(signal.Signals(number).name.removeprefix("SIG")))
    ended: dict[str, int] = {}
    passed_on, kill_at, killed, alive_at = 0, None, False, 0.0
    while len(ended) < len(nodes):
        if time.monotonic() > alive_at:
            alive_at = time.monotonic() + min(ALIVE_SECONDS, lost_seconds() / 4)
            send_all(nodes, "ALIVE")
        for node in nodes:
            code = node.process.poll()
            if code is not None and node.host.name not in ended:
                ended[node.host.name] = code
                tell(node.host.name, code, bool(asked))
                if code and kill_at is None:
                    grace = seconds_of("KD_GRACE_SECONDS", 60.0, least=0.0) if code == INTERRUPTED else FOLLOW_SECONDS
                    kill_at = time.monotonic() + grace
        for word in asked[passed_on:]:
            passed_on += 1
            send_all(nodes, word)
        if kill_at is not None and time.monotonic() > kill_at:
            end([node for node in nodes if node.host.name not in ended], cut=killed)
            kill_at, killed = time.monotonic() + FOLLOW_SECONDS, True
        time.sleep(POLL_SECONDS)
    return telling(list(ended.values()), stopped=bool(asked))


def send_all(nodes: Sequence[Node], word: str) -> None:
    """Send a line to every node."""
    for node in nodes:
        node.send(word)


def end(nodes: Sequence[Node], cut: bool) -> None:
    """Kill what runs on ``nodes``; where that did not help, ``cut`` the connection."""
    for node in nodes:
        if cut:
            node.process.kill()
        else:
            say(f"node {node.host.name} has not stopped by itself: ending it")
            node.send("KILL")


def tell(name: str, code: int, stopped: bool) -> None:
    """Say how a node ended, where that is news."""
    if code == NOT_REACHED:
        say(f"node {name} is lost: its ssh connection ended (the node is down, or cut off)")
    elif code and not (stopped and code == INTERRUPTED):
        say(f"node {name} ended with exit code {code}")


def telling(codes: Sequence[int], stopped: bool) -> int:
    """The one exit code of all nodes: an error that names its cause first, then a crash, then what follows from one.

    A lost node means `RankLost`, whatever the others made of it: that the connection broke (1), or that they were to
    stop and could save (75).
    """
    lost = RankLost.exit_code
    if not stopped and any(code == NOT_REACHED or code < 0 for code in codes):
        codes = [code for code in codes if code in range(2, 9)] or [lost]
    order = [*range(2, 9), 1, INTERRUPTED, lost]
    return next((code for code in order if code in codes), max(codes))


def say(message: str) -> None:
    """Print one line on stderr."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
