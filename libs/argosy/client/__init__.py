"""The Python client of Argosy: `Client` and `AsyncClient` speak to a gateway over HTTP.

    from argosy.client import Client

    with Client("http://127.0.0.1:8080", api_key="ak_...") as argosy:
        dataset = argosy.dataset.create_dataset(parent="orgs/acme", dataset_id="notes", dataset={"type":
        "DATASET_TYPE_TEXT"}) for event in argosy.task.watch_task(name=task.name):
            ...

Every RPC that has an HTTP route is a method of its area (`argosy.<area>.<rpc in snake case>`); arguments are the fields
of its request, as Python values, dictionaries or messages; the answer is the protobuf message of `argosy.<area>.v1`.
"""

from argosy.client.asynchronous import AsyncClient
from argosy.client.errors import (
    ApiError,
    Conflict,
    FailedPrecondition,
    Forbidden,
    InvalidRequest,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from argosy.client.policy import Policy
from argosy.client.synchronous import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "FailedPrecondition",
    "Forbidden",
    "InvalidRequest",
    "NotFound",
    "Policy",
    "TooManyRequests",
    "Unauthenticated",
    "Unavailable",
]
