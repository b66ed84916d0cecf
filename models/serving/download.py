"""Pictures by URL, fetched without letting strangers reach what only this machine can reach.

The address is checked where the connection is made, so neither a redirect nor a name that resolves
differently the second time gets around it.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

import httpcore
import httpx

from models.serving.config import ServingConfig
from models.serving.errors import APIError, bad_request
from models.serving.images import too_large

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_CONNECTIONS = 64


class Downloader:
    """Fetches pictures over http and https, nothing else; close it at the end."""

    def __init__(self, config: ServingConfig) -> None:
        self._limits = config.limits
        backend = httpcore.AnyIOBackend() if config.allow_private_urls else PublicOnly()
        # No connection is used twice: a web server may close one just as the next request goes out on it,
        # and a picture that is there would be refused.
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=_MAX_CONNECTIONS, max_keepalive_connections=0, network_backend=backend
        )

    async def fetch(self, url: str) -> bytes:
        """The body behind a URL. Raises APIError (400, 413) that says why there is none."""
        try:
            async with asyncio.timeout(self._limits.max_download_seconds):
                return await self._follow(_checked(url))
        except TimeoutError:
            raise _refused(f"did not arrive within {self._limits.max_download_seconds:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise _refused(f"could not be fetched ({type(error).__name__})") from error
        except (httpcore.UnsupportedProtocol, ValueError) as error:
            raise _refused(f"is no URL that can be fetched ({error})") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _follow(self, url: httpx.URL) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._pool.stream(
                "GET", str(url), headers={"accept": "image/*", "accept-encoding": "identity"}
            ) as response:
                if response.status == 200:
                    return await self._read(response)
                if response.status not in _REDIRECTS:
                    raise _refused(f"was answered with status {response.status}")
                url = _checked(str(url.join(_location(response.headers))))
        raise _refused(f"redirects more than {MAX_REDIRECTS} times")

    async def _read(self, response: httpcore.Response) -> bytes:
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._limits.max_image_bytes:
                raise too_large("The image of a URL", f"{self._limits.max_image_bytes} bytes")
        return bytes(data)


class PublicOnly(httpcore.AnyIOBackend):
    """Connects to public addresses only, by the address that was checked and not by name."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection. Raises APIError when any address of the host is not public."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        if not addresses or not all(map(is_public, addresses)):
            raise _refused("is at an address that is not public, which this server does not fetch from")
        return await super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, also when an IPv6 address carries an IPv4 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        teredo = found.teredo
        inner = found.ipv4_mapped or found.sixtofour or (teredo[1] if teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise _refused(f"is no valid URL ({str(error)[:80]})") from error
    if parsed.scheme not in ("http", "https"):
        raise _refused(f"has the scheme {parsed.scheme[:20]!r}; only http, https and data URIs are taken")
    if not parsed.host:
        raise _refused("names no host")
    return parsed


def _location(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name.lower() == b"location":
            return value.decode("latin-1")
    raise _refused("redirects without saying where")


def _refused(reason: str) -> APIError:
    return bad_request(f"An image's URL {reason}.", param="messages", code="invalid_image_url")
