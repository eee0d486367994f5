"""What an import reads outside of Argosy: a link, a file of WebHDFS, the answer of a database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator
from email.message import Message
from urllib.parse import unquote

import orjson

from libs.common.domain import DomainError, invalid
from libs.common.http.external import Answer, ExternalClient, Limits
from libs.common.http.links import Link, Networks, parse_link
from libs.compute.context import EngineContext
from services.dataset.clients.secrets import resolve_secret
from services.dataset.domain.formats import format_of
from services.dataset.domain.sources import NETWORKS_SETTING, is_webhdfs, scheme, web_link
from services.dataset.engines.databases import Query, is_database
from services.dataset.engines.fetching import Fetched, Source

# `bytes 200-999/1000` (RFC 9110, 14.4).
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
# Too early, too many calls, and faults of the server: another try may help (RFC 9110, 15.6; RFC 6585, 4).
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# A part that does not fit what has arrived: the file has changed, and comes from its beginning next time.
_OTHER_FILE = frozenset({206, 416})
_MOST_NAME = 255
# The status of a file is a few hundred bytes.
_STATUS = Limits(bytes=65_536, seconds=60.0)

# Gives the client for an answer that may take so many seconds and bytes.
Clients = Callable[[Limits], ExternalClient]


def open_source(ctx: EngineContext) -> Source | Query:
    """What the spec names.

    The spec has `uri`, or `secret` (its name), `identity` (address of the service that has it) and `query`; and
    `networks`, `max_bytes`, `max_seconds`, `sqlite_folder`, which are settings of the service.

    Raises:
        DomainError: INVALID_FIELD, NOT_FOUND, PEER_UNAVAILABLE.
    """
    spec = ctx.spec
    networks = Networks(spec["networks"], NETWORKS_SETTING)
    field = "uri" if "uri" in spec else "secret"
    uri = spec["uri"] if "uri" in spec else asyncio.run(resolve_secret(spec["secret"], spec["identity"]))
    if field == "secret" and is_database(uri):
        return Query(uri, spec["query"], networks, spec["sqlite_folder"], spec["max_seconds"])
    if field == "secret":
        _require_link(uri, spec["query"])

    def client(limits: Limits) -> ExternalClient:
        return ExternalClient(networks, limits)

    link = parse_link(web_link(uri, field), field)
    if is_webhdfs(uri):
        return HdfsFile(link, scheme(uri), client, spec["max_bytes"], field)
    return WebFile(link, client, spec["max_bytes"], field)


def _require_link(uri: str, query: str) -> None:
    """Refuses a secret that is for something else, without a word of what is in it."""
    if scheme(uri) not in ("http", "https") and not is_webhdfs(uri):
        raise invalid("secret", "holds neither a link nor the URL of a database")
    if query:
        raise invalid("query", "is for a database, and the secret holds a link")


class WebFile:
    """A file at a link; goes on where it stands if the server says what file it is (RFC 9110, 13.1.5 and 14)."""

    def __init__(self, link: Link, client: Clients, max_bytes: int, field: str) -> None:
        self._link = link
        self._client = client
        self._max_bytes = max_bytes
        self._field = field

    @property
    def address(self) -> str:
        return self._link.address

    def read(self, fetched: Fetched, seconds: float) -> Generator[bytes]:
        """See `Source.read`."""
        start = fetched.size if fetched.validator else 0
        headers = {"Range": f"bytes={start}-", "If-Range": fetched.validator} if start else {}
        client = self._client(Limits(self._max_bytes - start, seconds))
        with client.get(self._link, headers, self._field) as answer:
            if not (start and _continues(answer, start, fetched.total)):
                if answer.status in _OTHER_FILE:
                    fetched.begin("", fetched.file_name, 0)
                _require_whole(answer, self.address)
                fetched.begin(_validator(answer), _file_name(answer, self._link), _length(answer))
            yield from answer.chunks()


def _continues(answer: Answer, start: int, total: int) -> bool:
    """Whether the answer is the rest of the file from `start`."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if answer.status != 206 or found is None or answer.packed:
        return False
    return int(found[1]) == start and (not total or int(found[2]) == total)


def _require_whole(answer: Answer, address: str) -> None:
    if answer.status == 200:
        return
    message = f"{address} answers {answer.status}"
    if answer.status in _PASSING or answer.status in _OTHER_FILE:
        raise DomainError("PEER_UNAVAILABLE", message, service=answer.link.host)
    raise DomainError("CONTENT_INVALID", message, detail=str(answer.status))


def _validator(answer: Answer) -> str:
    """A strong entity tag, or the time of the last change; empty where a part of the file would prove nothing."""
    tag = answer.headers.get("etag", "")
    if answer.packed:
        return ""
    return tag if tag.startswith('"') else answer.headers.get("last-modified", "")


def _length(answer: Answer) -> int:
    stated = answer.headers.get("content-length", "")
    return int(stated) if stated.isdigit() and not answer.packed else 0


def _file_name(answer: Answer, link: Link) -> str:
    """The name that the server gives, or else the end of the path, before or after redirects: the first that means a
    format."""
    header = Message()
    header["content-disposition"] = answer.headers.get("content-disposition", "")
    names = [_base_name(header.get_filename() or ""), *(_path_name(found) for found in (link, answer.link))]
    given = [name for name in names if name]
    return next((name for name in given if format_of(name)), given[0] if given else link.host)


def _path_name(link: Link) -> str:
    return _base_name(unquote(link.target.partition("?")[0]))


def _base_name(name: str) -> str:
    """The last part of a name, without what no file name may have."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[-_MOST_NAME:]


class HdfsFile:
    """A file of HDFS by its REST interface: the NameNode says how large it is, and redirects to the DataNode that has
    it."""

    def __init__(self, link: Link, scheme_name: str, client: Clients, max_bytes: int, field: str) -> None:
        self._link = link
        self._scheme = scheme_name
        self._client = client
        self._max_bytes = max_bytes
        self._field = field

    @property
    def address(self) -> str:
        path = self._link.target.partition("?")[0].removeprefix("/webhdfs/v1")
        return f"{self._scheme}://{self._link.authority}{path}"

    def read(self, fetched: Fetched, seconds: float) -> Generator[bytes]:
        """See `Source.read`."""
        length, validator = self._status()
        if length > self._max_bytes:
            limit = str(self._max_bytes)
            raise DomainError("TOO_LARGE", f"{self.address} has more than {self._max_bytes:,} bytes", limit=limit)
        if fetched.validator != validator:
            fetched.begin(validator, _path_name(self._link), length)
        start = fetched.size
        client = self._client(Limits(self._max_bytes - start, seconds))
        with client.get(self._asked(f"op=OPEN&offset={start}"), None, self._field) as answer:
            _require_whole(answer, self.address)
            for chunk in answer.chunks():
                start += len(chunk)
                yield chunk
        if start < length:
            raise DomainError("PEER_UNAVAILABLE", f"{self.address} broke off", service=self._link.host)

    def _status(self) -> tuple[int, str]:
        """Bytes of the file, and what changes when it does."""
        with self._client(_STATUS).get(self._asked("op=GETFILESTATUS"), None, self._field) as answer:
            _require_whole(answer, self.address)
            body = b"".join(answer.chunks())
        try:
            status = orjson.loads(body)["FileStatus"]
            kind, length, changed = status["type"], int(status["length"]), int(status["modificationTime"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise DomainError("CONTENT_INVALID", f"{self.address} does not speak WebHDFS", detail="status") from None
        if kind != "FILE":
            raise DomainError("CONTENT_INVALID", f"{self.address} is a folder: name one file", detail=str(kind))
        return length, f"{changed}/{length}"

    def _asked(self, question: str) -> Link:
        path, _, query = self._link.target.partition("?")
        parameters = "&".join(part for part in (query, question) if part)
        return Link(self._link.scheme, self._link.host, self._link.port, f"{path}?{parameters}")
