"""Which network interface of this node the other nodes reach it by."""

import ipaddress
import socket

import psutil

from kd_megatron.errors import EnvironmentFault


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
