"""Which hosts are this machine."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host, by address or as `localhost`, is this machine's loopback."""
    return host == "localhost" or is_loopback_address(host)


def is_loopback_address(text: str) -> bool:
    """Return whether a text is an address of this machine's loopback, IPv4 in IPv6 too."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
