"""The processes of one node: works out the network interface, then becomes deepspeed's launcher of this node.

Called by launch.sh as ``python -m kd_megatron.launch.node --rank R --slots 8,8 --master ADDR:PORT COMMAND ...``.
"""

import argparse
import base64
import ipaddress
import json
import os
import socket
import sys
from typing import NoReturn

import psutil

from kd_megatron.errors import EnvironmentFault, KdError
from kd_megatron.ranks.ports import parse_port

DEFAULT_PORT = 29500
VISIBLE = "KD_VISIBLE_DEVICES"  # CUDA_VISIBLE_DEVICES as this node had it


def interface_to(master: str, port: int) -> tuple[str, str]:
    """The interface (and this node's IPv4 address on it) by which this node reaches ``master``, or is it.

    gloo and NCCL need its name; without it they may pick one that the other nodes cannot reach.
    """
    address = _address_towards(master, port)
    if ipaddress.ip_address(address).is_loopback:
        raise EnvironmentFault(
            given=f"on this node the name {master!r} means {address}, which no other node can reach",
            expected="the name or address of the first node as the others see it",
            fix=f"give its address (--master, MASTER_ADDR), or take {master!r} off the loopback line of /etc/hosts",
        )
    return interface_of(address), address


def interface_of(address: str) -> str:
    """The interface that has this IPv4 address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in entries):
            return name
    raise EnvironmentFault(
        given=f"no network interface of this node has the address {address}", fix="set GLOO_SOCKET_IFNAME"
    )


def address_of(interface: str) -> str:
    """The IPv4 address of ``interface``."""
    known = psutil.net_if_addrs()
    for entry in known.get(interface, []):
        if entry.family == socket.AF_INET:
            return str(entry.address)
    raise EnvironmentFault(
        given=f"the network interface {interface!r} (GLOO_SOCKET_IFNAME) does not exist here or has no IPv4 address",
        expected=f"one of {', '.join(sorted(known))}",
        fix="correct GLOO_SOCKET_IFNAME, or leave it out",
    )


def _address_towards(master: str, port: int) -> str:
    """This node's own address on the route to ``master``; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((master, port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise EnvironmentFault(
            given=f"this node finds no way to the first node {master!r}: {error.strerror or error}",
            expected="its name or IPv4 address, on a network that joins the nodes",
            fix="correct the address (--master, MASTER_ADDR), or the name service of this node",
        ) from error


def main() -> NoReturn:
    """Become ``deepspeed.launcher.launch``, or end with an error's exit code."""
    parser = argparse.ArgumentParser(prog="kd_megatron.launch.node")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--slots", required=True, help="processes of each node, such as 8,8")
    parser.add_argument("--master", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    slots = [int(count) for count in arguments.slots.split(",")]
    try:
        address, port = split_address(arguments.master)
        if len(slots) > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
            os.environ["GLOO_SOCKET_IFNAME"] = interface_to(address, port)[0]
    except KdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # the launcher writes a list of its own there
        os.environ[VISIBLE] = os.environ["CUDA_VISIBLE_DEVICES"]
    os.execv(sys.executable, launcher(arguments.rank, slots, address, port, arguments.command))


def launcher(rank: int, slots: list[int], address: str, port: int, command: list[str]) -> list[str]:
    """The call of deepspeed's launcher for one node.

    Not its runner: that one ends with 0 when the launcher is killed, and orphans its processes on SIGTERM.
    """
    world = {f"node{index}": list(range(count)) for index, count in enumerate(slots)}
    world_info = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    return [
        sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world_info}", f"--node_rank={rank}",
        f"--master_addr={address}", f"--master_port={port}", "--log_level=critical", "--no_local_rank",
        "--module", "kd_megatron", *command,
    ]  # fmt: skip


def see_devices() -> None:
    """In a started process, before it looks for GPUs: those that the user let it see, not the launcher's 0, 1, ..."""
    if VISIBLE in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.pop(VISIBLE)


def split_address(master: str) -> tuple[str, int]:
    """``ADDR[:PORT]`` as (address, port)."""
    address, _, port = master.partition(":")
    try:
        return address, parse_port(port) if port else DEFAULT_PORT
    except ValueError as error:
        raise EnvironmentFault(given=f"--master {master}: {error}") from error


if __name__ == "__main__":
    main()
