"""Where an import may come from, beside an upload."""

from __future__ import annotations

from urllib.parse import urlsplit

from libs.common.domain import DomainError, invalid

# Named to people whose link leads elsewhere; what it says is `import_networks` of the settings.
NETWORKS_SETTING = "ARGOSY_DATASET_IMPORT_NETWORKS"
# WebHDFS is HTTP; the scheme says that the path is one of HDFS and how the file is asked for.
_WEBHDFS = {"webhdfs": "http", "swebhdfs": "https"}
_WEBHDFS_ROOT = "/webhdfs/v1"


def is_webhdfs(uri: str) -> bool:
    """Whether an address is one of WebHDFS."""
    return scheme(uri) in _WEBHDFS


def scheme(uri: str) -> str:
    """What stands before the colon, in lower case."""
    return uri.partition(":")[0].lower()


def web_link(uri: str, field: str = "uri") -> str:
    """The HTTP link of an address: itself, or that of the REST interface of WebHDFS (Hadoop, `WebHDFS REST API`).

    Raises:
        DomainError: INVALID_FIELD, for the port of HDFS itself, which is not HTTP.
    """
    if scheme(uri) == "hdfs":
        message = f"{field}: hdfs:// is not HTTP; name the web address of the file: webhdfs://namenode:9870/path"
        raise DomainError("INVALID_FIELD", message, field=field)
    if not is_webhdfs(uri):
        return uri
    rest = uri.partition(":")[2]
    try:
        parts = urlsplit(rest)
    except ValueError:
        raise invalid(field, "its host cannot be read") from None
    query = f"?{parts.query}" if parts.query else ""
    return f"{_WEBHDFS[scheme(uri)]}://{parts.netloc}{_WEBHDFS_ROOT}{parts.path or '/'}{query}"
