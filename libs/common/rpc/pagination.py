"""Pages of lists, as AIP-158 has them."""

from __future__ import annotations

import base64
import hashlib

import orjson
from google.protobuf.message import Message

from libs.common.errors import ArgosyError, invalid_field

# Fields that may change between two pages of one list.
_FREE_FIELDS = ("page_size", "page_token")


def page_size(asked: int, default: int = 50, maximum: int = 1000) -> int:
    """How many items to give: 0 means the default, more than the maximum is cut down, negative is INVALID_ARGUMENT."""
    if asked < 0:
        raise invalid_field("page_size", "must not be negative")
    return min(asked or default, maximum)


class PageToken:
    """Where a list goes on. It holds for the same query only: a digest of the request's other fields is part of it."""

    @staticmethod
    def encode(request: Message, position: str) -> str:
        """The token for the page after `position`; empty when `position` is empty, which ends the list."""
        if not position:
            return ""
        return base64.urlsafe_b64encode(orjson.dumps([_digest(request), position])).rstrip(b"=").decode()

    @staticmethod
    def decode(request: Message) -> str:
        """The position in `request.page_token`; empty on the first page.

        Raises ArgosyError(PAGE_TOKEN_INVALID) for a token that was altered or belongs to another query.
        """
        token: str = request.page_token  # type: ignore[attr-defined]
        if not token:
            return ""
        try:
            content = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        except ValueError:
            raise _invalid() from None
        if not (isinstance(content, list) and len(content) == 2 and content[0] == _digest(request)):
            raise _invalid()
        if not isinstance(content[1], str) or not content[1]:
            raise _invalid()
        return content[1]


def _digest(request: Message) -> str:
    query = type(request)()
    query.CopyFrom(request)
    for field in _FREE_FIELDS:
        query.ClearField(field)
    return hashlib.sha256(query.SerializeToString(deterministic=True)).hexdigest()[:16]


def _invalid() -> ArgosyError:
    message = "page_token: is not one that this list gave"
    return ArgosyError("PAGE_TOKEN_INVALID", message, field="page_token")
