"""Manifests: JSON documents that name blobs. A manifest is a blob too, so its digest stands for everything below it."""

from __future__ import annotations

import re
from typing import Any

import orjson

Json = dict[str, Any]

# What a store says of a blob that is not there, or not what it was; whatever else it says may pass.
LOST = ("NOT_FOUND", "CONTENT_INVALID", "INTERNAL")

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


def canonical(manifest: Json) -> bytes:
    """The one way to write a manifest: UTF-8, sorted keys, no spaces; equal manifests have equal digests."""
    return orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)


def nested_manifests(manifest: Json) -> list[str]:
    """Those of the blobs that are manifests themselves: what they name lives as long as this one, but a grant for this
    one does not open it."""
    return [entry["sha256"] for entry in manifest.get("blobs", ()) if entry.get("manifest")]


def manifest_digests(manifest: Json) -> list[str]:
    """SHA-256 of the blobs that a manifest names: the field `sha256` of every entry of its list `blobs`."""
    return [entry["sha256"] for entry in manifest.get("blobs", ())]
