"""Secrets: sealed values of an organization, written and never read back."""

from __future__ import annotations

from dataclasses import dataclass

from libs.common.domain import Resource


@dataclass(kw_only=True)
class Secret(Resource):
    """A sealed value. `payload_version` counts the payloads that it has had."""

    display_name: str = ""
    sealed: bytes = b""
    payload_version: int = 0

    def replace_payload(self, sealed: bytes) -> None:
        self.sealed = sealed
        self.payload_version += 1
