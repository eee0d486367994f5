"""Secrets that went through the mesh stand in no log line and, in the database of identity, in no column.

That Ray refuses a driver without its token is shown where Ray runs: tests/integration/compute/test_driver.py.
"""

from __future__ import annotations

import logging
from typing import Any

from argosy.app.v1 import app_pb2, app_service_pb2, app_service_pb2_grpc
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import identity_pb2, identity_service_pb2, identity_service_pb2_grpc
from sqlalchemy import text

from libs.common.pki import OPERATOR
from tests.security.conftest import Lines
from tests.security.world import BOOTSTRAP, World

CANARY = "canary-7f3a9c5e1b"


async def plant(world: World) -> dict[str, str]:
    """Sends secrets of every kind; what each is."""
    identity = identity_service_pb2_grpc.IdentityServiceStub(world.channel("identity", OPERATOR))
    admin = world.mesh.metadata(role=options_pb2.ROLE_ADMIN)
    wanted = identity_pb2.Secret(payload=CANARY.encode())
    request = identity_service_pb2.CreateSecretRequest(
        parent="orgs/acme", secret_id="hub", secret=wanted, request_id="canary-secret"
    )
    await identity.CreateSecret(request, metadata=admin, timeout=10)
    # The answer to a change is remembered by its request id: there, too, a key must not lie open.
    key = identity_service_pb2.CreateApiKeyRequest(
        parent="orgs/system", api_key=identity_pb2.ApiKey(subject="orgs/system/users/admin"), request_id="canary-key"
    )
    system = world.mesh.metadata(org="system", role=options_pb2.ROLE_SYSTEM)
    made = await identity.CreateApiKey(key, metadata=system, timeout=10)
    again = await identity.CreateApiKey(key, metadata=system, timeout=10)
    assert again.secret == made.secret
    token = (await world.exchange(made.secret)).token
    prompts = app_service_pb2_grpc.AppServiceStub(world.channel("app", OPERATOR))
    prompt = app_service_pb2.CreatePromptRequest(parent="orgs/acme", prompt=app_pb2.Prompt(description=f"x{CANARY}"))
    await prompts.CreatePrompt(prompt, metadata=world.mesh.metadata(), timeout=10)
    return {
        "bootstrap token": BOOTSTRAP,
        "first key": world.system_key,
        "key": made.secret,
        "token": token.rsplit(".", 1)[1],
        "secret or prompt": CANARY,
    }


async def test_no_secret_is_logged(world: World, log_lines: Lines) -> None:
    planted = await plant(world)
    logging.getLogger("canary").info("the net is %s", "up")
    assert any("the net is up" in line for line in log_lines.lines)
    assert len(log_lines.lines) > 50
    for what, value in planted.items():
        assert [line for line in log_lines.lines if value in line] == [], what


async def test_no_secret_lies_open_in_the_database(world: World) -> None:
    """Looks through every column of every table, as somebody with a copy of the disk would."""
    database: Any = world.services["identity"].app.database  # type: ignore[union-attr]
    secrets = (BOOTSTRAP, world.system_key, world.user_key, CANARY)
    async with database.reading() as connection:
        names = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        tables = [row[0] for row in names]
        assert {"secrets", "api_keys", "idempotency", "outbox"} <= set(tables)
        for table in tables:
            for row in await connection.execute(text(f'SELECT * FROM "{table}"')):
                kept = b" ".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
                for secret in secrets:
                    assert secret.encode() not in kept, f"{table} holds {secret[:8]}..."
