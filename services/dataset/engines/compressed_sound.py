"""Sounds of FLAC, OGG (Vorbis, Opus) and MP3, by libsndfile. Runs only in the limited child."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile

from services.dataset.engines.decoding import BadMedia, Facts, is_mp3_frame, require_form, sound_format
from services.dataset.engines.ogg_pages import ogg_fault

# Codecs by the subtypes of libsndfile, but for FLAC, which is a format with several.
_CODECS = {"VORBIS": "vorbis", "OPUS": "opus", "MPEG_LAYER_III": "mp3"}
# What libsndfile says of a file that does not say how long it is.
_UNKNOWN = 2**63 - 1
_CHUNK_FRAMES = 65_536
# The tag of Xing and LAME in the first frame of an MP3, and what is in it.
_TAG = re.compile(rb"(?:Xing|Info)\0\0\0(.)", re.DOTALL)
_TAG_HAS_FRAMES = 1


class Sound(soundfile.SoundFile):
    """A sound that is read once, from its beginning to its end: one of unknown length cannot be sought in."""

    def seekable(self) -> bool:
        """So that nothing seeks."""
        return False

    @property
    def codec(self) -> str:
        """Empty for one that is not read."""
        return "flac" if self.format == "FLAC" else _CODECS.get(self.subtype, "")


def sound_facts(path: Path) -> Facts:
    """Duration in seconds, sample rate in hertz, channels, codec. Raises BadMedia."""
    with open_sound(path) as sound:
        frames = sum(len(block) for block in sound_blocks(sound))
        return {
            "duration": round(frames / sound.samplerate, 6),
            "sample_rate": sound.samplerate,
            "channels": sound.channels,
            "codec": sound.codec,
        }


def open_sound(path: Path) -> Sound:
    """A sound whose samples can be read. Raises BadMedia."""
    fault = ogg_fault(path) if sound_format(path) == "ogg" else ""
    if fault:
        raise BadMedia(fault)
    try:
        sound = _opened(path)
    except soundfile.LibsndfileError as error:
        raise BadMedia(f"the sound cannot be opened: {error.error_string}") from error
    if not sound.codec:
        raise BadMedia(f"{sound.format} of {sound.subtype} is not read")
    require_form(sound.channels, sound.samplerate, sound.frames)
    return sound


def sound_blocks(sound: Sound) -> Iterator[np.ndarray]:
    """All samples, some at a time: (n, channels) float32. Raises BadMedia when they break off."""
    read = 0
    while len(block := _block(sound)):
        read += len(block)
        yield block
    if read < sound.frames != _UNKNOWN:
        raise BadMedia(f"cut off: {read:,} of {sound.frames:,} samples are there")
    if not read:
        raise BadMedia("a sound without samples")


def _block(sound: Sound) -> np.ndarray:
    try:
        return sound.read(_CHUNK_FRAMES, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadMedia(f"damaged or cut off: {error.error_string}") from error


def _opened(path: Path) -> Sound:
    if sound_format(path) != "mp3":
        return Sound(path)
    with path.open("rb") as file:
        start = file.read(10)
        # The size of an ID3 tag: four times seven bits.
        size = sum(byte << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=False))
        first = len(start) + size if start.startswith(b"ID3") else 0
        file.seek(first)
        frame = file.read(64)
    if not is_mp3_frame(frame):
        raise BadMedia("no MP3 behind its tag")
    tag = _TAG.search(frame)
    if tag is not None and tag[1][0] & _TAG_HAS_FRAMES:
        return Sound(path)
    # How long it is would be guessed by the size of the file, and what comes later left out; of a pipe all is read.
    return Sound(_piped(path, first))


def _piped(path: Path, start: int) -> int:
    """The end of a pipe that gives the bytes of a file from `start` on."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), path.open("rb") as file, open(writing, "wb") as pipe:
            file.seek(start)
            shutil.copyfileobj(file, pipe)

    threading.Thread(target=write, daemon=True).start()
    return reading
