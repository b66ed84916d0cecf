"""Two hosts on one machine: network namespaces, each with its own loopback, joined by one wire."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

WIRE = "wire"  # what each host calls its end


@dataclass(frozen=True)
class Host:
    """A network namespace and its address on the wire."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """What runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def bytes_sent(self) -> int:
        """What has left this host over the wire."""
        counter = f"/sys/class/net/{WIRE}/statistics/tx_bytes"
        done = subprocess.run(self.command("cat", counter), check=True, capture_output=True, text=True)
        return int(done.stdout)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both, for the time of a block; skips the test where namespaces may not be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root may make network namespaces, with iproute2")
    hosts = tuple(Host(f"host{index}-{os.getpid()}", f"10.77.0.{index + 1}") for index in (0, 1))
    try:
        for host in hosts:
            if subprocess.run(["ip", "netns", "add", host.name], capture_output=True).returncode:
                pytest.skip("this container may not make network namespaces")
        ends = [f"type veth peer name {WIRE} netns {hosts[1].name}".split(), ["netns", hosts[0].name]]
        _ip("link", "add", WIRE, *ends[1], *ends[0])
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", WIRE)
            _ip("-n", host.name, "link", "set", WIRE, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
