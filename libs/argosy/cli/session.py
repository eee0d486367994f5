"""What every command shares: the client, names given short, output as a table or as JSON, errors that say what to
do.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from argosy.cli.live import TaskFailed, VerdictLate
from argosy.client import Client, Policy
from argosy.client.errors import ApiError, Forbidden, Unauthenticated, Unavailable
from argosy.client.settings import load, resolve
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

console = Console(highlight=False)
errors_console = Console(stderr=True, highlight=False)

# Exit codes: 1 the platform refused, 2 the command line is wrong (as click has it), 3 a task failed, 4 nobody answered.
REFUSED, MISUSED, TASK_FAILED, NO_ANSWER = 1, 2, 3, 4
# An id, or `-` for any (AIP-159).
_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|-")


class Misuse(Exception):
    """The command line does not say what is needed."""


@contextmanager
def session(patience: float = 20.0) -> Generator[Client]:
    """A client for the time of one command; what goes wrong is printed for people and becomes the exit code."""
    try:
        with Client(policy=Policy(patience=patience)) as client:
            yield client
    except ApiError as error:
        errors_console.print(f"[red]argosy:[/red] {_escape(str(error))}{_advice(error)}", soft_wrap=True)
        sys.exit(NO_ANSWER if isinstance(error, Unavailable) else REFUSED)
    except VerdictLate as error:
        errors_console.print(f"[red]argosy:[/red] {_escape(str(error))}", soft_wrap=True)
        sys.exit(NO_ANSWER)
    except TaskFailed as error:
        errors_console.print(f"[red]argosy:[/red] {_escape(str(error))}", soft_wrap=True)
        errors_console.print(f"  its log: argosy task logs {error.task.name}")
        sys.exit(TASK_FAILED)
    except (Misuse, ValueError, TypeError, OSError) as error:
        errors_console.print(f"[red]argosy:[/red] {_escape(str(error))}", soft_wrap=True)
        sys.exit(MISUSED)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _advice(error: ApiError) -> str:
    if isinstance(error, Unauthenticated):
        return "\n  `argosy login --key ...` keeps a key; the first one comes from `argosy bootstrap`"
    if isinstance(error, Forbidden) and error.reason == "SELF_APPROVAL":
        return "\n  somebody else with the role APPROVER must run `argosy deploy approve`"
    if error.reason == "GATE_SHUT":
        return "\n  `argosy eval run --gate ...` decides a gate; `argosy model show` shows why it is shut"
    return ""


def organization() -> str:
    """`orgs/{org}` of the key that is used.

    Raises:
        Misuse: there is none.
    """
    login = load()
    _, key = resolve(None, None)
    if key and key != login.api_key:  # ARGOSY_API_KEY, which may be somebody else's than the login's
        return _organization_of(key)
    if not login.org:
        raise Misuse("no organization: run `argosy login`, or set ARGOSY_API_KEY")
    return login.org


@cache
def _organization_of(key: str) -> str:
    with session() as client:
        return client.identity.exchange_key(key=key).org


def full_name(given: str, pattern: str) -> str:
    """A resource name from a short one.

    Args:
        given: `docs`, `docs/1` or the whole name.
        pattern: of the name, such as `orgs/*/datasets/*/versions/*`.
    Raises:
        Misuse: it fits in no way.
    """
    if given.startswith("orgs/") or given == pattern:
        return given
    parts = given.strip("/").split("/")
    # The organization is that of the login, where it is not what is asked for.
    inside = pattern.startswith("orgs/*/")
    holes = pattern.count("*") - inside
    if len(parts) != holes or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise Misuse(f"{given!r} names no {pattern}; short it is {'/'.join(['ID'] * holes)}")
    filled = pattern
    if inside:
        filled = organization() + pattern.removeprefix("orgs/*")
    for part in parts:
        filled = filled.replace("*", part, 1)
    return filled


def short_name(name: str) -> str:
    """The ids of a resource name without its organization and collections: `orgs/a/datasets/docs/versions/1` ->
    `docs/1`.
    """
    parts = name.split("/")
    ids = parts[3::2] if parts[0] == "orgs" and len(parts) > 2 else parts[1::2]
    return "/".join(ids) or name


def plain(message: Message) -> dict[str, Any]:
    """A message as plain values, field names as in the contracts."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def show(message: Message | Mapping[str, Any], as_json: bool) -> None:
    """Prints one thing."""
    data = plain(message) if isinstance(message, Message) else dict(message)
    if as_json:
        print(json.dumps(data, ensure_ascii=False, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in data.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        table.add_row(f"[bold]{name}[/bold]", _escape(text))
    console.print(table)


def show_list(messages: Iterable[Message], as_json: bool, columns: Sequence[str] = ()) -> None:
    """Prints many things: a table of the columns that tell most, or a JSON array of all."""
    rows = [plain(message) for message in messages]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not rows:
        console.print("none")
        return
    chosen = list(columns) or _telling(rows)
    table = Table(*chosen)
    for row in rows:
        table.add_row(*(_cell(name, row.get(name, "")) for name in chosen))
    console.print(table)


_HIDDEN = {"uid", "etag", "lineage", "secrecy", "update_time", "labels", "creator", "delete_time"}


def _telling(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(name for name, value in row.items() if not isinstance(value, (dict, list))))
    names = [name for name in found if name not in _HIDDEN]
    first = [name for name in ("name", "state", "display_name") if name in names]
    return (first + [name for name in names if name not in first])[:7]


def _cell(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if name == "state":
        return text.removeprefix("STATE_").lower()
    if name.endswith("_time"):
        return text[:19].replace("T", " ")
    return _escape(short_name(text) if name == "name" else text[:60])


def assignments(pairs: Sequence[str], body: str | None) -> dict[str, Any]:
    """A resource from `--body` (JSON, `@file` or `-` for standard input) and `--set field=value`; a value may be JSON.

    Raises:
        Misuse: one of them cannot be read.
    """
    data: dict[str, Any] = {}
    if body:
        text = sys.stdin.read() if body == "-" else open(body[1:]).read() if body.startswith("@") else body  # noqa: SIM115
        try:
            data = json.loads(text)
        except ValueError as error:
            raise Misuse(f"--body is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise Misuse("--body must be a JSON object")
    for pair in pairs:
        path, sign, value = pair.partition("=")
        if not sign:
            raise Misuse(f"--set {pair}: write field=value")
        _assign(data, path.split("."), value)
    return data


def _assign(data: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
    try:
        data[path[-1]] = json.loads(value)
    except ValueError:
        data[path[-1]] = value
