"""Ports for servers that are about to start on this machine."""

import secrets
import socket

# Below those that Linux gives to every connection and to whoever asks for any port: nobody gets one by chance
# in the seconds between our choice and a server that listens. PyTorch's launcher likes 29500.
_PORTS = range(10_240, 29_000)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on now."""
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(_PORTS)
        if _is_free(port):
            found.add(port)
    return list(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
