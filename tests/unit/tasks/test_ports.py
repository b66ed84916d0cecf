"""Ports that nobody gets by chance before a server listens."""

import socket
from pathlib import Path

import pytest

from tasks import ports

GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_they_differ_and_can_be_listened_on() -> None:
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_none_is_one_that_the_kernel_gives_away() -> None:
    first, last = map(int, GIVEN_AWAY.read_text().split())
    if first < 29_000:
        pytest.skip("this machine gives away nearly all of its ports")
    assert not [port for port in ports.free_ports(100) if first <= port <= last]


def test_one_that_is_in_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    used, free = ports.free_ports(2)
    monkeypatch.setattr(ports, "_PORTS", [used, free])
    with socket.create_server(("127.0.0.1", used)):
        assert {ports.free_port() for _ in range(20)} == {free}
