"""People, keys, tokens and secrets, over mutual TLS and on real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import options_pb2
from argosy.dataset.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from argosy.identity.v1 import identity_pb2, identity_service_pb2, token_service_pb2, usage_service_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from deploy.local import postgres
from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels
from libs.common.testing.service import running_service
from services.dataset.app import DEFINITION as DATASET
from services.identity.app import DEFINITION
from tests.integration.identity.conftest import BOOTSTRAP, Rig


async def refusal(call: Any) -> str:
    with pytest.raises(ArgosyError) as raised:
        await call
    return raised.value.reason


async def refused(call: Any) -> float:
    """Calls until the token is refused as revoked; the monotonic time of that."""
    async with asyncio.timeout(10):
        while True:
            try:
                await call()
            except ArgosyError as error:
                if error.reason != "TOKEN_REVOKED":
                    raise
                return time.monotonic()
            await asyncio.sleep(0.02)


async def test_the_bootstrap_token_works_once(bare: Rig) -> None:
    wrong = token_service_pb2.BootstrapRequest(token=BOOTSTRAP + "x")
    assert await refusal(bare.tokens.Bootstrap(wrong)) == "TOKEN_INVALID"
    token = await bare.exchange(await bare.bootstrap())
    assert (token.org, token.subject, token.role) == ("orgs/system", "users/admin", options_pb2.ROLE_SYSTEM)
    again = token_service_pb2.BootstrapRequest(token=BOOTSTRAP, user_id="mallory")
    assert await refusal(bare.tokens.Bootstrap(again)) == "TOKEN_INVALID"


async def test_two_bootstraps_at_once_make_one_administrator(bare: Rig) -> None:
    requests = [token_service_pb2.BootstrapRequest(token=BOOTSTRAP, user_id=f"admin{n}") for n in range(4)]
    answers = await asyncio.gather(*(bare.tokens.Bootstrap(r) for r in requests), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


async def test_departments_are_a_tree(rig: Rig) -> None:
    async def create(id_: str, above: str = "") -> identity_pb2.Department:
        department = identity_pb2.Department(parent_department=f"orgs/acme/departments/{above}" if above else "")
        request = identity_service_pb2.CreateDepartmentRequest(
            parent="orgs/acme", department_id=id_, department=department
        )
        return await rig.people.CreateDepartment(request, metadata=rig.system)

    top = await create("top")
    middle = await create("middle", "top")
    await create("leaf", "middle")
    top.parent_department = "orgs/acme/departments/leaf"
    update = identity_service_pb2.UpdateDepartmentRequest(
        department=top, update_mask=FieldMask(paths=["parent_department"])
    )
    assert await refusal(rig.people.UpdateDepartment(update, metadata=rig.system)) == "INVALID_FIELD"
    delete = identity_service_pb2.DeleteDepartmentRequest(name=middle.name)
    assert await refusal(rig.people.DeleteDepartment(delete, metadata=rig.system)) == "STATE_CONFLICT"


async def test_a_department_with_people_stays(rig: Rig) -> None:
    request = identity_service_pb2.CreateDepartmentRequest(
        parent="orgs/acme", department_id="lab", department=identity_pb2.Department()
    )
    lab = await rig.people.CreateDepartment(request, metadata=rig.system)
    user = await rig.user("carol", options_pb2.ROLE_VIEWER, department=lab.name)
    delete = identity_service_pb2.DeleteDepartmentRequest(name=lab.name)
    assert await refusal(rig.people.DeleteDepartment(delete, metadata=rig.system)) == "STATE_CONFLICT"
    await rig.people.DeleteUser(identity_service_pb2.DeleteUserRequest(name=user.name), metadata=rig.system)
    await rig.people.DeleteDepartment(delete, metadata=rig.system)


async def test_nobody_grants_more_than_he_has(rig: Rig) -> None:
    ada = await rig.login((await rig.key("orgs/acme/users/ada")).secret)

    async def create(role: int) -> identity_pb2.User:
        user = identity_pb2.User(role=role)  # type: ignore[arg-type]
        return await rig.people.CreateUser(
            identity_service_pb2.CreateUserRequest(parent="orgs/acme", user=user), metadata=ada
        )

    assert (await create(options_pb2.ROLE_ADMIN)).role == options_pb2.ROLE_ADMIN
    # The role that crosses organizations exists in `system` alone.
    assert await refusal(create(options_pb2.ROLE_SYSTEM)) == "INVALID_FIELD"
    await rig.user("sam", options_pb2.ROLE_ADMIN, org="system")
    sam = await rig.login((await rig.key("orgs/system/users/sam")).secret)
    me = await rig.people.GetUser(identity_service_pb2.GetUserRequest(name="orgs/system/users/sam"), metadata=sam)
    me.role = options_pb2.ROLE_SYSTEM
    raised = identity_service_pb2.UpdateUserRequest(user=me, update_mask=FieldMask(paths=["role"]))
    assert await refusal(rig.people.UpdateUser(raised, metadata=sam)) == "ROLE_MISSING"
    # Nor does a key for somebody above give his role.
    assert await refusal(rig.key("orgs/system/users/admin", sam)) == "ROLE_MISSING"


async def test_a_key_is_shown_once_and_lives_as_long_as_it_says(rig: Rig) -> None:
    soon = Timestamp()
    soon.FromNanoseconds(int((time.time() + 3.0) * 1e9))
    key = await rig.key("orgs/acme/users/bob", expire_time=soon, requests_per_minute=7)
    token = await rig.exchange(key.secret)
    assert (token.subject, token.role, token.requests_per_minute) == ("users/bob", options_pb2.ROLE_EDITOR, 7)
    read = await rig.people.GetApiKey(identity_service_pb2.GetApiKeyRequest(name=key.name), metadata=rig.system)
    assert (read.secret, read.prefix) == ("", "_".join(key.secret.split("_", 2)[:2]))
    assert await refusal(rig.exchange(key.secret[:-1] + ("a" if key.secret[-1] != "a" else "b"))) == "TOKEN_INVALID"
    await asyncio.sleep(3.1)
    assert await refusal(rig.exchange(key.secret)) == "TOKEN_EXPIRED"


async def test_a_revoked_key_is_refused_everywhere_within_a_second(
    rig: Rig, tmp_path: Path, postgres_server: postgres.Server
) -> None:
    url = await postgres_server.create_service_database("revocations_dataset", "secret")
    blobs = f"file://{tmp_path}/blobs"
    async with running_service(DATASET, rig.mesh, database_url=url, blob_root=blobs):
        channels = Channels(CommonSettings(peers=rig.mesh.peers, pki_dir=rig.mesh.pki), "gateway")
        datasets = channels.stub(dataset_service_pb2_grpc.DatasetServiceStub, "dataset")
        try:
            key = await rig.key("orgs/acme/users/ada")
            ada = await rig.login(key.secret)
            heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()

            async def listen() -> None:
                async for said in rig.tokens.WatchRevocations(token_service_pb2.WatchRevocationsRequest()):
                    if said.name == key.name:
                        return heard.set_result(time.monotonic())

            def list_datasets() -> Any:
                return datasets.ListDatasets(dataset_service_pb2.ListDatasetsRequest(parent="orgs/acme"), metadata=ada)

            def list_users() -> Any:
                return rig.people.ListUsers(identity_service_pb2.ListUsersRequest(parent="orgs/acme"), metadata=ada)

            await list_datasets()
            await list_users()
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                group.create_task(listen())
                await asyncio.sleep(0.2)
                await rig.people.RevokeApiKey(
                    identity_service_pb2.RevokeApiKeyRequest(name=key.name), metadata=rig.system
                )
                done = time.monotonic()
                elsewhere = group.create_task(refused(list_datasets))
                # Identity itself, where a revoked administrator could give himself a new key.
                here = group.create_task(refused(list_users))
            assert max(await heard, elsewhere.result(), here.result()) - done < 1.0
            assert await refusal(rig.exchange(key.secret)) == "TOKEN_REVOKED"
        finally:
            await channels.close()


async def test_a_disabled_user_is_out(rig: Rig) -> None:
    key = await rig.key("orgs/acme/users/bob")
    metadata = await rig.login(key.secret)
    get = identity_service_pb2.GetUserRequest(name="orgs/acme/users/bob")
    bob = await rig.people.GetUser(get, metadata=metadata)
    bob.disabled = True
    update = identity_service_pb2.UpdateUserRequest(user=bob, update_mask=FieldMask(paths=["disabled"]))
    await rig.people.UpdateUser(update, metadata=rig.system)
    assert await refusal(rig.exchange(key.secret)) == "TOKEN_REVOKED"
    await refused(lambda: rig.people.GetUser(get, metadata=metadata))


async def test_revocations_written_at_once_are_all_heard(rig: Rig) -> None:
    """A watcher looks for ids above the last one that it saw; none may become visible below that."""
    keys = [await rig.key("orgs/acme/users/bob") for _ in range(12)]
    heard: set[str] = set()

    async def listen() -> None:
        async for said in rig.tokens.WatchRevocations(token_service_pb2.WatchRevocationsRequest()):
            heard.add(said.name)
            if heard >= {key.name for key in keys}:
                return

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(listen())
        for key in keys:
            request = identity_service_pb2.RevokeApiKeyRequest(name=key.name)
            group.create_task(rig.people.RevokeApiKey(request, metadata=rig.system))


async def test_a_secret_is_written_and_never_read_back(rig: Rig) -> None:
    payload = b"the password of the model hub"
    created = await rig.people.CreateSecret(
        identity_service_pb2.CreateSecretRequest(
            parent="orgs/acme", secret_id="hub", secret=identity_pb2.Secret(payload=payload)
        ),
        metadata=rig.system,
    )
    get = identity_service_pb2.GetSecretRequest(name=created.name)
    read = await rig.people.GetSecret(get, metadata=rig.system)
    assert (created.payload, read.payload, read.payload_version) == (b"", b"", 1)
    # The gateway is one of the services that use secrets; no role helps anybody else.
    resolve = identity_service_pb2.ResolveSecretRequest(name=created.name)
    assert (await rig.people.ResolveSecret(resolve)).payload == payload
    async with rig.service.app.database.reading() as connection:  # type: ignore[union-attr]
        row = (await connection.execute(text("SELECT * FROM secrets"))).one()
    assert not any(payload in value for value in row if isinstance(value, bytes))
    assert not any("password" in str(value) for value in row)


async def test_usage_counts_once(rig: Rig) -> None:
    entries = [
        usage_service_pb2.UsageEntry(
            id=f"e{n}", org="orgs/acme", subject="users/bob", model="llm", prompt_tokens=10, completion_tokens=n
        )
        for n in range(3)
    ]
    first = await rig.usage.RecordUsage(usage_service_pb2.RecordUsageRequest(entries=entries[:2]))
    second = await rig.usage.RecordUsage(usage_service_pb2.RecordUsageRequest(entries=entries))
    assert (first.written, first.known, second.written, second.known) == (2, 0, 1, 2)
    listed = usage_service_pb2.ListUsageRequest(parent="orgs/acme", page_size=2)
    page = await rig.usage.ListUsage(listed, metadata=rig.system)
    assert len(page.usage) == 2
    assert page.next_page_token
    summary = usage_service_pb2.SummarizeUsageRequest(parent="orgs/acme")
    [total] = (await rig.usage.SummarizeUsage(summary, metadata=rig.system)).sums
    assert (total.key, total.requests, total.prompt_tokens, total.completion_tokens) == ("llm", 3, 30, 3)


async def test_two_processes_share_the_signing_keys(rig: Rig, database_url: str) -> None:
    address = rig.mesh.peers["identity"]
    async with running_service(DEFINITION, rig.mesh, database_url=database_url):
        assert rig.mesh.peers["identity"] != address
        channels = Channels(CommonSettings(peers=rig.mesh.peers, pki_dir=rig.mesh.pki), "gateway")
        try:
            other = Rig(rig.mesh, rig.service, channels)
            jwks = token_service_pb2.GetJwksRequest()
            assert (await other.tokens.GetJwks(jwks)).keys == (await rig.tokens.GetJwks(jwks)).keys
            # Whose token it is makes no difference to the other one.
            request = identity_service_pb2.ListUsersRequest(parent="orgs/acme")
            users = await other.people.ListUsers(request, metadata=rig.system)
            assert [user.name for user in users.users]
        finally:
            await channels.close()
