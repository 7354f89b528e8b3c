"""A port at which the ranks of one machine can meet. ``python -m kd_megatron.ranks.ports`` prints one."""

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST, FEWEST = 10_000, 1_000


def parse_port(text: str) -> int:
    """The port that ``text`` names. Raises `ValueError` where it names none."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**16:
        raise ValueError(f"{text!r} is no port: a whole number from 1 to 65535")
    return int(text)


def free_port() -> int:
    """A port that is free now, from below those that the kernel gives away by itself (``ip_local_port_range``).

    Seconds pass until rank 0 listens there. A port of the kernel's own range may meanwhile become the near end of
    anybody's connection; one below it is lost only to a program that asks for just that port.
    """
    first_ephemeral = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 0
    ports = range(FIRST, first_ephemeral)
    tries = random.SystemRandom().sample(ports, FEWEST) if len(ports) >= FEWEST else []  # never from a recipe's seed
    for port in (*tries, 0):  # 0: the kernel's choice, where its range begins so low that it leaves no other
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("this machine has no free port")


if __name__ == "__main__":
    print(free_port())
