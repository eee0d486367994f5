"""Certificates that live for half a minute rotate under load, and no call notices."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.config import CommonSettings
from libs.common.pki import Certificates, server_name
from libs.common.rpc.client import Channels
from libs.common.testing.mesh import Mesh
from tests.security.handshake_server import Keys

# Renewed when a third is left: each certificate serves 20 s, and its clients have 10 s to take the next one.
LIFE = timedelta(seconds=30)
_BEAT = 0.1
_CALLERS = 4
# Handshakes at once, and how often. With certificates that are given anew at each, a thousand or two ended the server.
_AT_ONCE, _BURSTS = 24, 150


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh with one server, whose and whose client's certificates are short."""
    mesh = Mesh(tmp_path)
    for name in ("identity", "gateway"):
        mesh.ca.issue(name, LIFE)
    server = grpc.aio.server()
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(Keys(), server)
    port = server.add_secure_port("127.0.0.1:0", mesh.certificates("identity").server_credentials())
    mesh.peers["identity"] = f"127.0.0.1:{port}"
    await server.start()
    yield mesh
    await server.stop(0)


async def handshake(address: str, client: Certificates) -> None:
    """One call on a connection of its own."""
    options = (("grpc.ssl_target_name_override", server_name("identity")), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.secure_channel(address, client.channel_credentials(), options) as channel:
        stub = token_service_pb2_grpc.TokenServiceStub(channel)
        await stub.GetJwks(token_service_pb2.GetJwksRequest(), timeout=5)


async def test_many_handshakes_at_once_end_no_server(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    command = [sys.executable, "-m", "tests.security.handshake_server", str(mesh.pki)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address, client = f"127.0.0.1:{int(server.stdout.readline())}", Certificates(mesh.pki, "gateway")
            for _ in range(_BURSTS):
                burst = (handshake(address, client) for _ in range(_AT_ONCE))
                found = await asyncio.gather(*burst, return_exceptions=True)
                assert server.poll() is None
                assert None in found
        finally:
            server.kill()


async def test_certificates_rotate_under_load(mesh: Mesh, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("gateway.crt", "gateway.key", "ca.crt"):
        (old / name).write_bytes((mesh.pki / name).read_bytes())
    channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
    stub = channels.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
    fresh, done, calls = Certificates(mesh.pki, "gateway"), asyncio.Event(), 0
    await handshake(mesh.peers["identity"], Certificates(old, "gateway"))

    async def call() -> None:
        """Any failure ends the test: retries would hide it, so each call has one chance."""
        nonlocal calls
        while not done.is_set():
            await stub.GetJwks(token_service_pb2.GetJwksRequest())
            calls += 1
            await asyncio.sleep(0.005)

    async def connect() -> None:
        while not done.is_set():
            await handshake(mesh.peers["identity"], fresh)
            await asyncio.sleep(_BEAT)

    async def rotate() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.time() + LIFE.total_seconds() + 2.0
        renewed = False
        # The load goes on until the first certificates have ended.
        while loop.time() < ended:
            await asyncio.sleep(_BEAT)
            due = [mesh.ca.renew(name, LIFE) for name in ("identity", "gateway")]
            renewed |= all(due)
        assert renewed
        done.set()

    try:
        async with asyncio.timeout(90), asyncio.TaskGroup() as group:
            for _ in range(_CALLERS):
                group.create_task(call())
            group.create_task(connect())
            group.create_task(rotate())
    finally:
        await channels.close()
    assert calls > 1000
    # The first certificate has ended meanwhile: without the rotation the calls above would have failed.
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await handshake(mesh.peers["identity"], Certificates(old, "gateway"))
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
