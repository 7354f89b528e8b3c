"""The port at which ranks meet is nobody's before they use it."""

import socket
from pathlib import Path

import pytest

from kd_megatron.ranks import ports


def set_range(monkeypatch: pytest.MonkeyPatch, directory: Path, first: int) -> None:
    path = directory / "ip_local_port_range"
    path.write_text(f"{first}\t{first + 20_000}\n")
    monkeypatch.setattr(ports, "EPHEMERAL", path)


def test_it_is_free_and_the_kernel_gives_it_to_nobody_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_range(monkeypatch, tmp_path, first=32_768)
    found = {ports.free_port() for _ in range(20)}
    assert len(found) > 1  # two jobs that start at once are not sent to one port
    assert all(ports.FIRST <= port < 32_768 for port in found)
    for port in found:
        socket.create_server(("127.0.0.1", port)).close()


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", ports.free_port())) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST", taken)
        monkeypatch.setattr(ports, "FEWEST", 2)
        set_range(monkeypatch, tmp_path, first=taken + 2)
        assert {ports.free_port() for _ in range(20)} <= set(range(taken + 1, 65_536))


def test_where_the_kernel_gives_away_nearly_all_it_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_range(monkeypatch, tmp_path, first=1024)
    socket.create_server(("127.0.0.1", ports.free_port())).close()
