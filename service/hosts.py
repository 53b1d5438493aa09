"""Which hosts a request may say it is for: against pages that make a name of theirs resolve to this service.

A browser lets a page read what comes from the page's own host. If that host's name is made to resolve to an address of
the service (DNS rebinding), the page reads the service; but its requests say ``Host: <the page's name>``, and are
refused.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from service.errors import UnknownHostError

ANY = "*"
NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
HOST = re.compile(r"(?P<name>\[[0-9a-f:.%a-z]+\]|[^:\[\]/@\s]+)(:[0-9]*)?")


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, without brackets. No page's name can be one."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def plain_host(host: str) -> str:
    """Bring a host of the settings into the form in which hosts are compared.

    Args:
        host: A name, an IP address with or without brackets, or "*".

    Returns:
        The host in small letters, without brackets.

    Raises:
        ValueError: If it is none of these.
    """
    plain = host.lower().removesuffix(".")
    if plain.startswith("[") and plain.endswith("]"):
        plain = plain[1:-1]
    if plain == ANY or is_address(plain) or NAME.fullmatch(plain):
        return plain
    raise ValueError(f"a host is a name or an IP address without scheme and port, or *, not {host!r}")


class AllowedHosts:
    """The hosts that requests may be for: localhost, any IP address, the address listened on, and what is set."""

    def __init__(self, hosts: Iterable[str], bound: str) -> None:
        """Allow some hosts.

        Args:
            hosts: Names from the settings; "*" allows all.
            bound: The host that the settings say to bind.
        """
        self._names = {plain_host(host) for host in (*hosts, bound, "localhost")}

    def check(self, given: list[str], server: str | None) -> None:
        """Refuse a request for another host.

        Args:
            given: The request's Host headers.
            server: The address that the connection came in at, as the server knows it.

        Raises:
            UnknownHostError: If there is not exactly one header, or its host is not allowed, whatever its port.
        """
        if ANY in self._names:
            return
        found = HOST.fullmatch(given[0].strip().lower()) if len(given) == 1 else None
        if found is None:
            raise UnknownHostError(None)
        host = found["name"].strip("[]").removesuffix(".")
        if not (host in self._names or is_address(host) or (server is not None and host == server.lower())):
            raise UnknownHostError(host)
