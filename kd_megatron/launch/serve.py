"""The side of preflight that runs on a node: says its facts, then tries to reach the other nodes.

One JSON line out (facts), one in (the other nodes' addresses), one out (those not reached), then it waits for the end
of its input: its ports stay open until every node has tried them.
"""

import argparse
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kd_megatron.errors import KdError
from kd_megatron.launch import facts
from kd_megatron.launch.node import address_of, interface_to, split_address

REACH_SECONDS = 5.0
ANSWER = "KD answer: "  # begins what is meant for `kd_megatron.launch.preflight`


def main() -> int:
    """Answer both questions on stdout."""
    parser = argparse.ArgumentParser(prog="kd_megatron.launch.serve")
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
    problems, sockets = facts.disk_problems(), []
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
