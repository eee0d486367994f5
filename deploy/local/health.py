"""Whether a part answers, asked the way its users ask it."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from libs.common.pki import OPERATOR, Certificates, server_name


def tcp(port: int, timeout: float = 1.0) -> str:
    """Empty when something accepts connections on a port of 127.0.0.1, else why not."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout):
            return ""
    except OSError as error:
        return error.strerror or "no answer"


def grpc_service(pki: Path, name: str, port: int, timeout: float = 2.0) -> str:
    """Empty when a service says over mutual TLS that it serves, else what it says."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    try:
        credentials = Certificates(pki, OPERATOR).channel_credentials()
    except OSError:
        return "no certificate yet"
    options = [("grpc.ssl_target_name_override", server_name(name)), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            return str(error.code().name).lower().replace("_", " ")  # type: ignore[attr-defined]
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status).lower()


def http(port: int, path: str, timeout: float = 2.0) -> str:
    """Empty when a GET on 127.0.0.1 answers 200, else what it answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return "" if answer.status == 200 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
