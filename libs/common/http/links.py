"""Links and addresses of servers that people give: what they may look like, and where they may lead.

Whoever gives a link chooses where this machine connects to (server-side request forgery, CWE-918). So a link is taken
apart once, strictly; what is connected to is made of those parts; and every address that its host has must be public.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import idna

from libs.common.domain import invalid

Address = IPv4Address | IPv6Address

_MOST_CHARACTERS = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Spaces, controls and backslashes are where parsers disagree about what the host is.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_NETLOC = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:@]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# What the URL standard takes for an IPv4 address in one of its old spellings (decimal, octal, hexadecimal, short).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Kept as they are in path and query: what RFC 3986 allows there, and escapes that are there already.
_SAFE = "/%:@!$&'()*+,;=-._~?"

# Not public in IANA's registry of special-purpose IPv4 addresses, and multicast. 168.63.129.16 is public in form only:
# inside Azure it is the host's own wire server.
_NOT_PUBLIC_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Of IPv6 only global unicast is public (RFC 4291, 2.4), without protocol assignments (Teredo, ORCHID, benchmarks),
# documentation, and 6to4, whose addresses hide any IPv4 address.
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
# Translated to IPv4 on the way (RFC 4291, 2.5.5.2; RFC 6052): what is behind decides.
_TRANSLATED = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))

# Web servers listen on 80, 443 or above 1023. Below lie mail, shells and directories; these above it belong to
# databases, queues and control planes, or are on the list of the Fetch standard ("bad port").
_LAST_SYSTEM_PORT = 1023
_STORES = (
    "1433 1521 2049 2181 2375 2376 2379 2380 3306 4222 5432 5672 6379 6443 9042 9092 9200 9300 10250 10255 11211 27017"
)
_FETCH = "1719 1720 1723 3659 4045 4190 5060 5061 6000 6566 6665 6666 6667 6668 6669 6679 6697 10080"
_BAD_PORTS = frozenset(map(int, f"{_STORES} {_FETCH}".split()))


@dataclass(frozen=True)
class Link:
    """A link in its parts.

    Attributes:
        scheme: `http` or `https`.
        host: a name in ASCII and lower case, or an address without brackets.
        port: always set.
        target: path and query, escaped.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port, as the header `Host` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """The link without its query, which may be a key (signed links)."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    def follow(self, location: str, field: str) -> Link:
        """Where a redirect leads.

        Args:
            location: of the answer; may be relative.
            field: at fault when it may not be followed.

        Raises:
            DomainError: INVALID_FIELD.
        """
        try:
            joined = urljoin(f"{self.scheme}://{self.authority}{self.target}", location)
        except ValueError:
            joined = ""
        # Joining drops what parsers disagree about, so it is looked for before.
        if not joined or _FORBIDDEN.search(location):
            raise invalid(field, f"{self.address} redirects to what is no link")
        target = parse_link(joined, field)
        if self.scheme == "https" and target.scheme == "http":
            raise invalid(field, f"{self.address} redirects from https to http")
        return target


def parse_link(text: str, field: str = "uri") -> Link:
    """Takes a link apart.

    Args:
        text: as somebody gave it.
        field: where; named in errors.

    Raises:
        DomainError: INVALID_FIELD.
    """
    parts = _split(text, _DEFAULT_PORTS, field)
    if "@" in parts.netloc:
        raise invalid(field, "has a user name or password in it: store the whole link as a secret, without them")
    host, port = _place(parts.netloc, _DEFAULT_PORTS[parts.scheme], field)
    _require_port(port, field)
    target = quote(parts.path or "/", safe=_SAFE.replace("?", ""))
    query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    return Link(parts.scheme, host, port, target + query)


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens that does not speak HTTP.

    Attributes:
        scheme: of its protocol.
        host: a name in ASCII and lower case, or an address without brackets.
        port: always set.
        user: as whom to log in; empty where nobody is named.
        password: of the user.
    """

    scheme: str
    host: str
    port: int
    user: str = attribute(default="", repr=False)
    password: str = attribute(default="", repr=False)

    @property
    def address(self) -> str:
        """For people; without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_server(
    text: str, ports: Mapping[str, int], field: str = "uri", *, credentials: bool = False
) -> ServerAddress:
    """Takes the address of a server apart: a scheme, a host, a port, and nothing behind them.

    Args:
        text: as somebody gave it.
        ports: scheme -> port of an address without one.
        field: where; named in errors.
        credentials: whether a user and a password may stand in it.

    Raises:
        DomainError: INVALID_FIELD.
    """
    parts = _split(text, ports, field)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise invalid(field, "has more behind its port")
    login, at, netloc = parts.netloc.rpartition("@")
    if at and not credentials:
        raise invalid(field, "has a user name or password in it: store the whole address as a secret")
    host, port = _place(netloc, ports[parts.scheme], field)
    if not 0 < port < 65536:
        raise invalid(field, f"{port} is no port")
    user, _, password = login.partition(":")
    return ServerAddress(parts.scheme, host, port, unquote(user), unquote(password))


def _split(text: str, schemes: Collection[str], field: str) -> SplitResult:
    if len(text) > _MOST_CHARACTERS:
        raise invalid(field, f"is longer than {_MOST_CHARACTERS} characters")
    if _FORBIDDEN.search(text):
        raise invalid(field, "has a space, a control character or a backslash in it")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise invalid(field, "is no link: its host cannot be read") from None
    if parts.scheme not in schemes:
        raise invalid(field, f"{parts.scheme or 'no scheme'} is not followed: only {' and '.join(schemes)} are")
    return parts


def _place(netloc: str, default_port: int, field: str) -> tuple[str, int]:
    """Host and port."""
    found = _NETLOC.fullmatch(netloc)
    if found is None:
        raise invalid(field, "is no link: its host or its port cannot be read")
    host = _address6(found["v6"], field) if found["v6"] else _host(found["name"], field)
    return host, int(found["port"] or default_port)


def _address6(text: str, field: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise invalid(field, f"[{text}] is no IPv6 address") from None


def _host(name: str, field: str) -> str:
    try:
        # UTS 46 maps other writings of letters, digits and dots (①, 。) to the plain ones, as browsers do.
        host = name.lower() if name.isascii() else idna.encode(name, uts46=True).decode()
    except idna.IDNAError:
        raise invalid(field, f"{name!r} is no host name") from None
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise invalid(field, f"{name!r} is no host name")
    if _NUMBER.fullmatch(labels[-1]):
        return _address4(host, field)
    return host


def _address4(text: str, field: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        message = f"{text} is an IPv4 address in an unusual spelling: write it as four decimal numbers"
        raise invalid(field, message) from None


def _require_port(port: int, field: str) -> None:
    if port > 65535 or port in _BAD_PORTS or (port <= _LAST_SYSTEM_PORT and port not in _DEFAULT_PORTS.values()):
        raise invalid(field, f"port {port} is not one of web servers: 80, 443, or one above {_LAST_SYSTEM_PORT}")


class Networks:
    """The addresses that may be connected to: public ones, and networks that the operator allows beside them.

    Args:
        allowed: CIDR blocks, such as `10.20.0.0/16`.
        setting: the setting that holds them; named in refusals.

    Raises:
        ValueError: One of them is no CIDR block.
    """

    def __init__(self, allowed: Iterable[str], setting: str) -> None:
        self._allowed = [ip_network(text) for text in allowed]
        self._setting = setting

    def require(self, address: str, host: str, field: str) -> None:
        """Refuses an address.

        Args:
            address: of the host, as the resolver gave it; an IPv6 scope after `%` is ignored.
            host: as it stands in the link.
            field: where the link stands.

        Raises:
            DomainError: INVALID_FIELD, it is not public and not in a network that is allowed.
        """
        found = _meant(ip_address(address.partition("%")[0]))
        if _is_public(found) or any(found in network for network in self._allowed):
            return
        leads = host if host == str(found) else f"{host} ({found})"
        message = f"the link leads to {leads}, which is not a public address"
        raise invalid(field, f"{message}; an operator allows networks with {self._setting}")

    def require_literal(self, link: Link | ServerAddress, field: str) -> None:
        """Refuses a link whose host is a forbidden address; a name is looked up only when the link is followed."""
        try:
            ip_address(link.host)
        except ValueError:
            return
        self.require(link.host, link.host, field)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address is translated to, or the address itself."""
    if isinstance(address, IPv6Address) and any(address in network for network in _TRANSLATED):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
