"""The processes of one node: works out the network interface, then becomes deepspeed's launcher of this node.

Called by launch.sh as ``python -m kd_megatron.launch.node --rank R --slots 8,8 --master ADDR:PORT COMMAND ...``.
"""

import argparse
import base64
import json
import os
import sys
from typing import NoReturn

from kd_megatron.errors import EnvironmentFault, KdError
from kd_megatron.launch.network import interface_to
from kd_megatron.ranks.ports import parse_port

DEFAULT_PORT = 29500
VISIBLE = "KD_VISIBLE_DEVICES"  # CUDA_VISIBLE_DEVICES as this node had it


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
