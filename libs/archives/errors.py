"""Why a file cannot be read as what it says that it is."""

from __future__ import annotations


class UnreadableFile(Exception):
    """The file as a whole is not of its format."""


class BrokenOff(Exception):
    """From here on the file cannot be read; the message says why, for people."""
