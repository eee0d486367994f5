"""The people of the main job: an administrator from the one-time token, Alice who works, Bob who approves."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from argosy.client import ApiError, Client, Policy, Unauthenticated
from argosy.client.errors import Conflict

ORG = "orgs/demo"
# Any process of the mesh may be killed meanwhile; it is back long before.
POLICY = Policy(timeout=60.0, patience=180.0)


class NoAdministrator(Exception):
    """The mesh has an administrator whose key is not known here."""


@dataclass(frozen=True)
class Keys:
    """API keys."""

    admin: str
    alice: str
    bob: str


def people(url: str, home: Path) -> tuple[Keys, bool]:
    """Keys of all three, made now or kept from an earlier run on the same data folder.

    Returns:
        the keys, and whether they were there already.
    Raises:
        NoAdministrator: the bootstrap token is spent and nobody gave a key.
        ApiError: the platform refused.
    """
    kept = home / "secrets" / "demo-keys.json"
    if kept.exists():
        keys = Keys(**json.loads(kept.read_text()))
        if _works(url, keys.alice):
            return keys, True
    admin_file = home / "secrets" / "demo-admin.json"
    admin_key = _administrator(url, home, admin_file)
    with Client(url, admin_key, POLICY) as admin:
        _make_organization(admin)
        keys = Keys(
            admin_key,
            _make_person(admin, "alice", "ROLE_EDITOR", "Alice, who trains models"),
            _make_person(admin, "bob", "ROLE_APPROVER", "Bob, who approves releases"),
        )
    _write(kept, json.dumps(asdict(keys)))
    return keys, False


def _works(url: str, key: str) -> bool:
    with Client(url, "", POLICY) as client:
        try:
            client.identity.exchange_key(key=key)
        except Unauthenticated:
            return False
    return True


def _administrator(url: str, home: Path, kept: Path) -> str:
    given = os.environ.get("ARGOSY_API_KEY")
    if given:
        return given
    if kept.exists():
        return str(json.loads(kept.read_text())["key"])
    token = (home / "secrets" / "bootstrap-token").read_text().strip()
    with Client(url, "", POLICY) as client:
        try:
            # The same request id gives the first answer again, should this process die before it could keep the key.
            answer = client.identity.bootstrap(token=token, user_id="admin", request_id="demo-bootstrap")
        except Unauthenticated as error:
            raise NoAdministrator(
                "this mesh has its first administrator already: set ARGOSY_API_KEY to a key with the role SYSTEM, "
                "or use a new data folder (ARGOSY_HOME)"
            ) from error
    _write(kept, json.dumps({"key": answer.api_key.secret}))
    return str(answer.api_key.secret)


def _make_organization(admin: Client) -> None:
    try:
        admin.identity.create_organization(organization_id="demo", organization={"display_name": "Demo"})
    except Conflict:
        return


def _make_person(admin: Client, name: str, role: str, text: str) -> str:
    """Makes a user with a new key, and gives the key."""
    with suppress(Conflict):
        admin.identity.create_user(parent=ORG, user_id=name, user={"role": role, "display_name": text})
    key = admin.identity.create_api_key(parent=ORG, api_key={"subject": f"{ORG}/users/{name}", "display_name": "demo"})
    if not key.secret:
        raise ApiError(500, "INTERNAL", "the new key came without its secret")
    return str(key.secret)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
