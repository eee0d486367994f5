"""A server with the certificate `identity` of a folder, as a process that can crash: `python -m ... FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.pki import Certificates


class Keys(token_service_pb2_grpc.TokenServiceServicer):
    """Answers."""

    async def GetJwks(self, request: object, context: object) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse()


async def main() -> None:
    """Serves until it is killed, and prints its port."""
    server = grpc.aio.server()
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(Keys(), server)
    credentials = Certificates(Path(sys.argv[1]), "identity").server_credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
