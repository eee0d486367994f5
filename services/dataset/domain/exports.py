"""Exports: a version as files of a format, kept for a while."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from libs.common.domain import DomainError, Resource, invalid

# How long the files can be fetched; the same export gives the same files again.
KEPT_TIME = timedelta(days=7)
# An export that lives so long at least is not made again.
FRESH_TIME = timedelta(days=1)

CONVERSATION_FORMATS = ("openai", "alpaca", "sharegpt", "dpo", "dpo-conversational")
IMAGE_FORMATS = ("coco", "label-studio", "yolo", "voc")
# A folder that Hugging Face's `load_dataset` reads.
FOLDER_FORMAT = "datasets"
TABLE_FORMATS = ("csv", "tsv", "parquet", "xlsx", FOLDER_FORMAT)
# These have a compression of their own.
_PACKED = ("parquet", "xlsx", "yolo", "voc", FOLDER_FORMAT)
_ENDINGS = {
    "json": "json",
    "csv": "csv",
    "tsv": "tsv",
    "parquet": "parquet",
    "xlsx": "xlsx",
    "text": "txt",
    "coco": "json",
    "label-studio": "json",
    "yolo": "zip",
    "voc": "zip",
}
# A version has at least one of these columns, or the format cannot say any of its rows.
_TELLING = {
    **dict.fromkeys(CONVERSATION_FORMATS, ("messages", "conversations", "instruction")),
    **dict.fromkeys(("dpo", "dpo-conversational"), ("chosen",)),
    **dict.fromkeys(IMAGE_FORMATS, ("image", "file_name")),
    "label-studio": ("image", "file_name", "text", "choices", "texts"),
}
_COMPRESSED = {"": "", "gzip": ".gz", "zstd": ".zst"}


@dataclass(kw_only=True)
class Export(Resource):
    """Files made of one version, or of several that are splits of one dataset.

    Attributes:
        expire_time: from then on it does not exist.
        format: one of the formats above.
        files: `path`, `size` and `sha256` of each.
        manifest_digest: manifest of the files.
        report: fields of `argosy.dataset.v1.ExportReport`.
        task: that made it.
        choices: digest of everything that its bytes depend on.
    """

    expire_time: datetime
    format: str
    choices: str = ""
    files: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    manifest_digest: str = ""
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    task: str = ""

    def require_alive(self, now: datetime) -> None:
        """Raises NOT_FOUND when it has expired."""
        if now >= self.expire_time:
            raise DomainError("NOT_FOUND", f"{self.name} does not exist.", name=self.name)

    def file(self, path: str) -> dict[str, Any]:
        """The file with this path; the only one, if none is named.

        Raises:
            DomainError: NOT_FOUND; INVALID_FIELD, if none is named and there are several.
        """
        if not path and len(self.files) == 1:
            return self.files[0]
        if not path:
            raise invalid("path", f"{self.name} has {len(self.files)} files; name one")
        found = next((file for file in self.files if file["path"] == path), None)
        if found is None:
            raise DomainError("NOT_FOUND", f"{self.name} has no file {path!r}.", name=f"{self.name}/{path}")
        return found


def require_choices(
    format_name: str, *, compression: str, text_column: str, with_source: bool, split: str, others: list[str]
) -> None:
    """Raises INVALID_FIELD for a choice that the format does not take.

    Args:
        others: names of the further splits.
    """
    if compression and format_name in _PACKED:
        raise invalid("compression", f"{format_name} is compressed already")
    if text_column and format_name != "text":
        raise invalid("text_column", "is for the format text")
    if with_source and format_name not in ("jsonl", "json", *TABLE_FORMATS):
        raise invalid("with_source", f"{format_name} has no place for it")
    if format_name != FOLDER_FORMAT and (split or others):
        raise invalid("other_splits" if others else "split", f"is for the format {FOLDER_FORMAT}")
    names = [split or "train", *others]
    if len(set(names)) != len(names):
        raise invalid("other_splits", "two splits have the same name")


def require_columns(format_name: str, columns: Collection[str]) -> None:
    """Raises INVALID_FIELD for a format that could not say a single row with these columns."""
    if format_name in TABLE_FORMATS and not columns:
        raise invalid("format", f"{format_name} needs a column, and the version has none")
    telling = _TELLING.get(format_name, ())
    if telling and not set(telling) & set(columns):
        raise invalid("format", f"{format_name} needs one of the columns {', '.join(telling)}")


def choices_digest(work: dict[str, Any]) -> str:
    """SHA-256 of the choices of an export, its versions included, in hexadecimal."""
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


def file_name(version_name: str, format_name: str, compression: str) -> str:
    """What the file of an export is called: `docs-v3.jsonl.gz` for `orgs/acme/datasets/docs/versions/v3`."""
    _, _, _, dataset, _, version = version_name.split("/")
    return f"{dataset}-{version}.{_ENDINGS.get(format_name, 'jsonl')}{_COMPRESSED[compression]}"
