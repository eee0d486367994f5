"""The client for NATS that leaves the mesh. It reads what JetStream keeps of a subject, from any message on.

It goes only where `Networks` allows. A host is resolved once, right before the connection; every address that it has
is checked; the socket goes to one of those addresses, while TLS keeps the name. Other servers that a server names are
never connected to. A server may be hostile: no more is taken than was asked for, nothing is sent in the clear where TLS
was asked for, and whatever it answers becomes an error for whoever gave its address.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy
from nats.js.errors import APIError, ServiceUnavailableError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from libs.common.domain import DomainError, invalid
from libs.common.http.external import Resolver, allowed_addresses, resolve
from libs.common.http.links import Networks, ServerAddress
from libs.common.ids import uuid7

# By the scheme of an address.
NATS_PORTS = {"nats": 4222, "tls": 4222}
# Of the messages that are fetched at once.
FETCHED_BYTES = 8 << 20

_FETCHED_MESSAGES = 1_000
_FETCH_SECONDS = 1.0
# For one step of a connection, and for one answer.
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 5.0
# JetStream forgets a reader that asked for nothing for so long.
_IDLE_SECONDS = 60.0
# No server of NATS takes a larger message.
_LARGEST_MESSAGE = 64 << 20
# Of a server's own lines and headers, in one answer.
_SPARE_BYTES = 1 << 20
# Longer ones are nothing that a server of NATS says; looking for their end again and again takes long.
_LONGEST_LINE = 64 << 10
_MOST_TEXT = 200
_NAMES = "$JS.API.STREAM.NAMES"
# How a fetch ends before it has all that it asked for: nothing more has come, or what comes next is too large.
_NO_MORE = ("404", "408")
_TOO_LARGE = "Message Size Exceeds MaxBytes"
_FULL = (_TOO_LARGE, "Batch Completed")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as JetStream keeps it.

    Attributes:
        sequence: its place in the JetStream stream; grows from message to message, with gaps.
        data: what was published.
    """

    sequence: int
    data: bytes


@asynccontextmanager
async def open_subject(
    server: ServerAddress,
    subject: str,
    networks: Networks,
    field: str,
    *,
    look_up: Resolver = resolve,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[ExternalSubject]:
    """Connects to a server, and finds the JetStream stream that keeps a subject.

    Args:
        server: where it is, with user and password; a user without a password is a token.
        subject: may have wildcards.
        networks: where the server may be.
        field: where its address stands; named in errors.
        look_up: finds the addresses of hosts.
        tls: whom to believe; None: the authorities that browsers believe.

    Raises:
        DomainError: INVALID_FIELD, the server may not be connected to, or refuses who connects; PEER_UNAVAILABLE;
            STATE_CONFLICT, there is no JetStream stream for the subject, or not one that can be read.
    """
    addresses = await asyncio.to_thread(allowed_addresses, server.host, server.port, networks, field, look_up)
    client = _Client(server.scheme == "tls")
    opened = ExternalSubject(client, server, subject, field)
    try:
        await opened.connect(addresses, tls)
        yield opened
    finally:
        await client.close()


class ExternalSubject:
    """A subject of a server outside. `open_subject` makes it.

    Attributes:
        origin: the JetStream stream, and when it was made: another one's messages begin at 1 again.
    """

    def __init__(self, client: _Client, server: ServerAddress, subject: str, field: str) -> None:
        self.origin = ""
        self._client = client
        self._jetstream = client.jsm(timeout=_ANSWER_SECONDS)
        self._server = server
        self._subject = subject
        self._field = field
        self._stream = ""
        self._end = 0
        # Where to ask for messages, and where they come.
        self._next = self._inbox = ""
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
        # What the client last complained of.
        self._trouble = ""
        self._last = self._count = 0

    async def connect(self, addresses: Sequence[str], tls: ssl.SSLContext | None) -> None:
        """See `open_subject`."""
        server, named = self._server, bool(self._server.password)
        with self._plain_errors():
            await self._client.connect(
                [f"nats://{f'[{address}]' if ':' in address else address}:{server.port}" for address in addresses],
                name="argosy",
                # Whoever reads on connects anew, by the name: a server may send its clients anywhere.
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                dont_randomize=True,
                connect_timeout=_CONNECT_SECONDS,
                tls=tls,
                tls_hostname=server.host,
                user=server.user if named else None,
                password=server.password if named else None,
                token=server.user if server.user and not named else None,
                error_cb=self._complained,
                closed_cb=self._closed,
            )
            await self._find_stream()

    async def begin(self, after: int) -> None:
        """Says where to read on.

        Args:
            after: sequence of the last message that was read; 0: none was.

        Raises:
            DomainError: as `open_subject`.
        """
        if after > self._end:
            problem = f"ends at message {self._end:,}, and message {after:,} was read: it has lost messages"
            raise self._unreadable(f"the JetStream stream {self._stream} {problem}")
        name = f"argosy-{uuid7()}"
        config = ConsumerConfig(
            name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            # Whoever reads knows best how far that is.
            ack_policy=AckPolicy.NONE,
            filter_subject=self._subject,
            inactive_threshold=_IDLE_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        with self._plain_errors():
            await self._jetstream.add_consumer(self._stream, config)
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(self._inbox, cb=self._receive)
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{name}"
        self._last, self._count = after, 0

    async def fetch(self) -> list[Message]:
        """The next messages, in order: at most 1,000, within a second; none if none came.

        Raises:
            DomainError: as `open_subject`; connect again to read on.
        """
        with self._plain_errors():
            messages, ended = await self._pull(FETCHED_BYTES, batch=_FETCHED_MESSAGES, max_bytes=FETCHED_BYTES)
            if not messages and ended == _TOO_LARGE:
                messages, _ = await self._pull(_LARGEST_MESSAGE, batch=1)
        return messages

    async def _find_stream(self) -> None:
        """A subject that no stream keeps is refused: what is published while nobody listens would be lost."""
        asked = json.dumps({"subject": self._subject}).encode()
        answer = json.loads((await self._client.request(_NAMES, asked, timeout=_ANSWER_SECONDS)).data)
        if "error" in answer:
            raise APIError.from_error(answer["error"])
        names = [_shown(str(name)) for name in answer.get("streams") or []]
        if not names:
            raise self._unreadable(f"no JetStream stream keeps {self._subject}: make one")
        if len(names) > 1:
            raise self._unreadable(f"{self._subject} is in more than one JetStream stream: {', '.join(names[:5])}")
        info = await self._jetstream.stream_info(names[0])
        if info.config.retention != RetentionPolicy.LIMITS:
            problem = "forgets messages that were acknowledged: one with the retention `limits` is needed"
            raise self._unreadable(f"the JetStream stream {names[0]} {problem}")
        self._stream, self._end = names[0], int(info.state.last_seq)
        self.origin = f"{self._stream} {info.created}"

    async def _pull(self, most_bytes: int, **wanted: int) -> tuple[list[Message], str]:
        """Messages, and why they are not as many as wanted."""
        self._client.parser.left = most_bytes + _SPARE_BYTES
        request = {"expires": int(_FETCH_SECONDS * 1e9), **wanted}
        await self._client.publish(self._next, json.dumps(request).encode(), self._inbox)
        messages: list[Message] = []
        try:
            async with asyncio.timeout(_FETCH_SECONDS + _ANSWER_SECONDS):
                while len(messages) < wanted["batch"]:
                    message = await self._arrived.get()
                    if message is None:
                        raise ConnectionResetError("closed")
                    if message.reply:
                        messages.append(self._checked(message))
                    elif ended := _ending(message):
                        return messages, ended
        except TimeoutError:
            if not messages:
                raise
        return messages, ""

    def _checked(self, message: Msg) -> Message:
        """The message, if it is the next one: none was left out on the way."""
        sequence, number = message.metadata.sequence.stream, message.metadata.sequence.consumer
        self._count += 1
        if number != self._count or not self._last < sequence < 2**63:
            raise ConnectionError("messages are missing")
        self._last = sequence
        return Message(sequence, message.data)

    async def _receive(self, message: Msg) -> None:
        self._arrived.put_nowait(message)

    async def _closed(self) -> None:
        self._arrived.put_nowait(None)

    async def _complained(self, error: Exception) -> None:
        self._trouble = str(error)
        _log.debug("%s: %s", self._server.address, error or type(error).__name__)

    @contextmanager
    def _plain_errors(self) -> Generator[None]:
        """What nats-py raises, as errors for whoever gave the address."""
        try:
            yield
        except DomainError:
            raise
        except ssl.SSLCertVerificationError as error:
            raise invalid(self._field, f"the certificate of {self._server.host} is not trusted") from error
        except _NoTlsError as error:
            raise invalid(self._field, f"{self._server.address} offers no TLS") from error
        except (NoRespondersError, ServiceUnavailableError) as error:
            raise self._unreadable("JetStream does not answer, and no other subject can be read") from error
        except APIError as error:
            raise self._away(f"refuses to read {self._subject}: {_shown(str(error.description))}") from error
        except (NatsError, OSError) as error:
            raise self._failed(f"{error} {self._trouble}".lower()) from error
        except Exception as error:
            # What nats-py does not expect of a server.
            raise self._away("does not speak NATS") from error

    def _failed(self, text: str) -> DomainError:
        if "permissions violation" in text:
            return invalid(self._field, f"{self._server.address} does not let its user read JetStream")
        if "authorization" in text or "authentication" in text:
            return invalid(self._field, f"{self._server.address} refuses the user, the password or the token")
        return self._away("cannot be reached, or broke off")

    def _away(self, doing: str) -> DomainError:
        address = self._server.address
        return DomainError("PEER_UNAVAILABLE", f"{self._field}: {address} {doing}", service=self._server.host)

    def _unreadable(self, problem: str) -> DomainError:
        message = f"{self._server.address}: {problem}"
        return DomainError("STATE_CONFLICT", message, name=self._subject, state="unreadable", wanted="kept")


class _NoTlsError(ConnectionError):
    """The server offers no TLS."""


class _Socket(TcpTransport):
    """Sends nothing before TLS where that was asked for: whoever stands between could take it away."""

    def __init__(self, tls_only: bool) -> None:
        super().__init__()
        self._may_write = not tls_only

    async def connect_tls(self, uri: str, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:  # type: ignore[override]
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._may_write = True

    def write(self, payload: bytes) -> None:
        if not self._may_write:
            raise _NoTlsError
        super().write(payload)

    async def wait_closed(self) -> None:
        """Does not wait: a server may keep its end open, and after a handshake that failed nobody would ever tell."""

    def __bool__(self) -> bool:
        # nats-py puts one of its own in the place of a socket that is not connected yet.
        return True


class _BoundedParser(Parser):
    """Takes no more bytes than `left`, and no endless lines."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.left = _SPARE_BYTES

    async def parse(self, data: bytes = b"") -> None:
        self.left -= len(data)
        if self.left < 0:
            raise ConnectionError("more bytes than were asked for")
        await super().parse(data)
        if self.state == AWAITING_CONTROL_LINE and len(self.buf) > _LONGEST_LINE:
            raise ConnectionError("an endless line")


class _Client(Client):
    """The client of nats-py with a socket and a parser that do not trust the server."""

    def __init__(self, tls_only: bool) -> None:
        super().__init__()
        self._ps = self.parser = _BoundedParser(self)
        self._socket = _Socket(tls_only)

    async def _connect_to_server(self, s: Srv) -> None:
        self._transport = self._socket
        await super()._connect_to_server(s)


def _ending(message: Msg) -> str:
    """What a message without content says: how a fetch ended; empty: it goes on. Raises ConnectionError."""
    headers = message.headers or {}
    status, description = headers.get("Status", ""), headers.get("Description", "")
    if status == "100":
        return ""
    if status in _NO_MORE:
        return status
    if description in _FULL:
        return description
    raise ConnectionError(f"{status} {description}")


def _shown(text: str) -> str:
    """What a server says, as far as people may see it."""
    return "".join(character for character in text if character.isprintable())[:_MOST_TEXT]
