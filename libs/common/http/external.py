"""The client for HTTP that leaves the mesh. It goes only where `Networks` allows, and never takes more than its limits.

A host is resolved once, right before the connection; every address that it has is checked; the socket goes to one of
those addresses, while TLS and the header `Host` keep the name. So a name whose address changes in between (DNS
rebinding) gains nothing. A redirect is a link like the first one. Proxies, cookies and .netrc play no part.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore

from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.domain import DomainError, invalid
from libs.common.http.links import Link, Networks

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Rows compress 5 to 40 times; a bomb of gzip reaches 1,030 times. Below the free bytes any ratio is taken.
_MOST_RATIO = 200
_FREE_BYTES = 1024 * 1024
# Unpacked at once.
_PIECE_BYTES = 256 * 1024
_AGENT = "Argosy"

# Host and port to all its addresses.
Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Limits:
    """What one answer may cost.

    Attributes:
        bytes: of the body, unpacked.
        seconds: for all of it.
        answer_seconds: to the end of the headers: looking up, connecting, TLS, redirects.
        idle_seconds: without a byte.
    """

    bytes: int
    seconds: float
    answer_seconds: float = 60.0
    idle_seconds: float = 30.0


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, by the resolver of this machine. Raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def allowed_addresses(host: str, port: int, networks: Networks, field: str, look_up: Resolver = resolve) -> list[str]:
    """The addresses of a host, all of them checked.

    Raises:
        DomainError: INVALID_FIELD, there is no such host, or one of its addresses is forbidden; PEER_UNAVAILABLE, the
            resolver does not answer.
    """
    try:
        addresses = look_up(host, port)
    except (socket.gaierror, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise _unavailable(host, f"the address of {host} cannot be looked up now") from error
        raise invalid(field, f"there is no host {host}") from error
    for address in addresses:
        networks.require(address, host, field)
    return addresses


class _Deadline:
    """A moment that every wait of one exchange ends at."""

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._clock = clock
        self._limits = limits
        self._began = clock.monotonic()
        self._until = self._began + min(limits.answer_seconds, limits.seconds)

    def answered(self) -> None:
        """The headers are here: from now on the body's time counts."""
        self._until = self._began + self._limits.seconds

    def wait(self) -> float:
        """Seconds that one wait may take; 0 when time is up."""
        return max(0.0, min(self._limits.idle_seconds, self._until - self._clock.monotonic()))


class _TimedStream(httpcore.NetworkStream):
    """A stream whose waits end at the deadline: one byte now and then does not keep it open."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not (seconds := self._deadline.wait()):
            raise httpcore.ReadTimeout
        return self._stream.read(max_bytes, seconds)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not (seconds := self._deadline.wait()):
            raise httpcore.WriteTimeout
        self._stream.write(buffer, seconds)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        if not (seconds := self._deadline.wait()):
            raise httpcore.ConnectTimeout
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _GuardedBackend(httpcore.NetworkBackend):
    """Opens sockets, to checked addresses only."""

    def __init__(self, networks: Networks, look_up: Resolver, deadline: _Deadline, field: str) -> None:
        self._networks = networks
        self._look_up = look_up
        self._deadline = deadline
        self._field = field
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectTimeout()
        for address in allowed_addresses(host, port, self._networks, self._field, self._look_up):
            if not (seconds := self._deadline.wait()):
                break
            try:
                return _TimedStream(self._sockets.connect_tcp(address, port, seconds), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class Answer:
    """An answer whose body is still to be read.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        link: that gave it, after redirects.
    """

    def __init__(self, link: Link, response: httpcore.Response, limits: Limits, field: str) -> None:
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        self.link = link
        self._response = response
        self._limits = limits
        self._field = field

    @property
    def packed(self) -> bool:
        """Whether the server packed the body for the way, so that offsets in it mean nothing."""
        return self._coding != "identity"

    @property
    def _coding(self) -> str:
        return self.headers.get("content-encoding", "identity").strip().lower() or "identity"

    def chunks(self) -> Iterator[bytes]:
        """The body.

        Raises:
            DomainError: TOO_LARGE, PEER_UNAVAILABLE, or INVALID_FIELD for a body that unpacks to suspiciously much.
        """
        stated = self.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._limits.bytes:
            raise self._too_large()
        size = 0
        with _plain_errors(self.link, self._field):
            for chunk in self._unpacked():
                size += len(chunk)
                if size > self._limits.bytes:
                    raise self._too_large()
                yield chunk

    def _unpacked(self) -> Iterator[bytes]:
        body = self._response.iter_stream()
        if self._coding in ("gzip", "x-gzip"):
            return _gunzipped(body, self.link, self._field)
        if self._coding != "identity":
            raise invalid(
                self._field, f"{self.link.address} packs its answer as {self._coding}, which was not asked for"
            )
        return iter(body)

    def _too_large(self) -> DomainError:
        limit = self._limits.bytes
        return DomainError("TOO_LARGE", f"{self.link.address} gives more than {limit:,} bytes", limit=str(limit))


def _gunzipped(body: Iterable[bytes], link: Link, field: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    taken = given = 0
    for chunk in body:
        taken += len(chunk)
        while chunk and not unpacker.eof:
            try:
                piece = unpacker.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise invalid(field, f"{link.address} says that its answer is gzip, which it is not") from error
            given += len(piece)
            if given > max(_FREE_BYTES, _MOST_RATIO * taken):
                raise invalid(field, f"{link.address} unpacks to more than {_MOST_RATIO} times its size")
            yield piece
            chunk = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise _unavailable(link.host, f"{link.address} broke off")


class ExternalClient:
    """Follows links.

    Args:
        networks: where they may lead.
        limits: of each answer.
        look_up: finds the addresses of hosts.
        tls: whom to believe; None: the authorities that browsers believe.
        clock: measures time.
    """

    def __init__(
        self,
        networks: Networks,
        limits: Limits,
        *,
        look_up: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._networks = networks
        self._limits = limits
        self._look_up = look_up
        self._tls = tls
        self._clock = clock

    @contextmanager
    def get(self, link: Link, headers: Mapping[str, str] | None = None, field: str = "uri") -> Generator[Answer]:
        """Asks for a link and follows its redirects.

        Args:
            link: from `parse_link`.
            headers: beside those that every request has.
            field: where the link stands; named in errors.

        Raises:
            DomainError: INVALID_FIELD, the link may not be followed; PEER_UNAVAILABLE, its server is away, slow or
                breaks off; TOO_LARGE.
        """
        deadline = _Deadline(self._clock, self._limits)
        with self._pool(deadline, field) as pool:
            for _ in range(_MOST_REDIRECTS + 1):
                with _exchange(pool, link, _request("GET", link, headers or {}), field) as response:
                    location = _location(response)
                    if location is None:
                        deadline.answered()
                        yield Answer(link, response, self._limits, field)
                        return
                link = link.follow(location, field)
            raise invalid(field, f"{link.address} redirects more than {_MOST_REDIRECTS} times")

    @contextmanager
    def post(self, link: Link, content: bytes, headers: Mapping[str, str], field: str = "uri") -> Generator[Answer]:
        """Sends JSON to a link. A redirect is an answer like others: what was sent goes nowhere else.

        Args:
            link: from `parse_link`.
            content: the body.
            headers: beside those that every request has.
            field: where the link stands; named in errors.

        Raises:
            DomainError: As `get`.
        """
        deadline = _Deadline(self._clock, self._limits)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
        with (
            self._pool(deadline, field) as pool,
            _exchange(pool, link, _request("POST", link, sent, content), field) as response,
        ):
            deadline.answered()
            yield Answer(link, response, self._limits, field)

    def _pool(self, deadline: _Deadline, field: str) -> httpcore.ConnectionPool:
        backend = _GuardedBackend(self._networks, self._look_up, deadline, field)
        return httpcore.ConnectionPool(ssl_context=self._tls, network_backend=backend)


@contextmanager
def _exchange(
    pool: httpcore.ConnectionPool, link: Link, request: httpcore.Request, field: str
) -> Generator[httpcore.Response]:
    with _plain_errors(link, field):
        response = pool.handle_request(request)
    try:
        yield response
    finally:
        response.close()


def _request(method: str, link: Link, headers: Mapping[str, str], content: bytes = b"") -> httpcore.Request:
    sent = {"Host": link.authority, "User-Agent": _AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
    url = httpcore.URL(
        scheme=link.scheme.encode(), host=link.host.encode(), port=link.port, target=link.target.encode()
    )
    pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
    return httpcore.Request(method, url, headers=pairs, content=content or None)


def _location(response: httpcore.Response) -> str | None:
    if response.status not in _REDIRECTS:
        return None
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == b"location"), None)


@contextmanager
def _plain_errors(link: Link, field: str) -> Generator[None]:
    """What httpcore raises, as errors for whoever gave the link."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise _unavailable(link.host, f"{link.address} is too slow") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        # httpcore hands the cause on as an argument, and its pool drops it elsewhere.
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
            raise invalid(field, f"the certificate of {link.host} is not trusted") from error
        doing = "cannot be reached" if isinstance(error, httpcore.ConnectError) else "broke off or does not speak HTTP"
        raise _unavailable(link.host, f"{link.address} {doing}") from error


def _unavailable(host: str, message: str) -> DomainError:
    return DomainError("PEER_UNAVAILABLE", message, service=host)
