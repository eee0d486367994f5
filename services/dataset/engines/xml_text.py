"""Text of XML documents."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

from services.dataset.engines.losses import Inexpressible

# What XML 1.0 cannot hold, whichever way it is written.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str, problem: str) -> str:
    """The text as it stands between tags. Raises `Inexpressible`, with `problem`, if XML cannot hold it."""
    if _FORBIDDEN.search(text):
        raise Inexpressible(problem)
    # A reader makes a line feed of a carriage return that stands as it is.
    return escape(text, {"\r": "&#13;"})
