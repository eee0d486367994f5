"""Content-addressed bytes: put, read in ranges, commit manifests, grant them for a while, collect what nobody names."""

from libs.common.blobs.garbage import GivenUp
from libs.common.blobs.manifest import LOST, Json, canonical, manifest_digests, nested_manifests
from libs.common.blobs.store import Blob, BlobStore, BlobWriter, Source

__all__ = [
    "LOST",
    "Blob",
    "BlobStore",
    "BlobWriter",
    "GivenUp",
    "Json",
    "Source",
    "canonical",
    "manifest_digests",
    "nested_manifests",
]
