"""Where the ranks meet: one store, reached in bounded time, or an error that says which rank is missing."""

import os
import socket
from datetime import timedelta

import torch.distributed as torch_dist

from kd_megatron.errors import EnvironmentFault, RankLost
from kd_megatron.ranks import failures
from kd_megatron.ranks.failures import Pulse
from kd_megatron.ranks.heartbeat import NEWS, Heart, pulse_key
from kd_megatron.ranks.ports import parse_port


def meet(rank: int, world_size: int) -> tuple[torch_dist.Store, Heart]:
    """Wait for all ranks at the store; returns it, for the process group, and the heart that beats from here on.

    Raises:
        RankLost: not all arrived within ``KD_HANG_SECONDS``.
        EnvironmentFault: the address is unknown or its port is taken.
    """
    address = _address()
    lost, patience = failures.lost_seconds(), failures.hang_seconds()
    where = f"{address[0]}:{address[1]} (MASTER_ADDR:MASTER_PORT)"
    store = _store(rank, world_size, address, patience, where)
    try:
        pulses = _arrive(store, rank, world_size, where, patience)
    except torch_dist.DistError as error:  # the store went with rank 0, which missed somebody first, or died
        raise RankLost(
            given=f"rank 0 at {where} ended while rank {rank} on {socket.gethostname()} waited for the others",
            expected=f"all {world_size} ranks there",
            fix="see what rank 0 says, then start again",
        ) from error
    return torch_dist.PrefixStore("kd/group", store), Heart(rank, pulses, address, lost, patience)


def _arrive(store: torch_dist.Store, rank: int, world_size: int, where: str, patience: float) -> list[Pulse]:
    """Say that ``rank`` is there, and wait for the others; returns the first pulse of each."""
    if rank == 0:
        store.set(NEWS, "")
    store.set(pulse_key(rank), Pulse(socket.gethostname()).to_bytes())
    keys = [pulse_key(other) for other in range(world_size)]
    try:
        store.wait([NEWS, *keys], timedelta(seconds=patience))
    except torch_dist.DistStoreError as error:
        raise _missing(store, keys, where, patience) from error
    return [Pulse.from_bytes(data) for data in store.multi_get(keys)]


def _address() -> tuple[str, int]:
    host, port = os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", "")
    try:
        socket.getaddrinfo(host, parse_port(port))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            given=f"MASTER_ADDR={host} MASTER_PORT={port or '(not set)'}: {error}",
            expected="the address of rank 0's node, as this node knows it, and a free port there",
            fix="set both as the launcher does, or start with launch.sh",
        ) from None
    return host, int(port)


def _store(rank: int, world_size: int, address: tuple[str, int], patience: float, where: str) -> torch_dist.Store:
    """The store itself on rank 0 (unless torchrun keeps it), a client elsewhere."""
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = torch_dist.TCPStore(
            *address,
            is_master=is_master,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
        )
    except (torch_dist.DistError, RuntimeError) as error:
        if is_master:
            raise EnvironmentFault(
                given=f"the ranks cannot meet at {where}: {str(error).splitlines()[0]}",
                expected="an address of this node and a port that is free on it",
                fix="set MASTER_PORT to another port; a job that still runs may hold this one",
            ) from error
        raise RankLost(
            given=f"rank {rank} on {socket.gethostname()} did not reach rank 0 at {where} within {patience:g} s",
            expected=f"all {world_size} ranks there",
            fix="see whether rank 0's node is up and a firewall lets the port through, then start again",
        ) from error
    return store


def _missing(store: torch_dist.Store, keys: list[str], where: str, patience: float) -> RankLost:
    """The error that names the ranks that are not there."""
    here = [rank for rank, key in enumerate(keys) if store.check([key])]
    absent = [rank for rank in range(len(keys)) if rank not in here]
    hosts = sorted({Pulse.from_bytes(store.get(keys[rank])).host for rank in here})
    return RankLost(
        given=f"{failures.name_ranks(absent)} of {len(keys)} did not arrive at {where} within {patience:g} s",
        expected=f"all of them, beside {failures.name_ranks(here)} on {', '.join(hosts)}",
        fix="see why these did not start (their node's output, a firewall, KD_HANG_SECONDS), then start again",
    )
