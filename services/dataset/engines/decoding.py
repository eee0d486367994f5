"""What is in an image, a sound or a film. Runs only in the limited child (`media_child.py`), because the libraries that
decode such files were written in languages in which a malformed file can do anything."""

from __future__ import annotations

import math
import warnings
import wave
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

# Pixels of an image or of a frame of a film: 300 MB in memory.
MAX_PIXELS = 100_000_000
# Pillow knows forty more, most of them old and none of them fuzzed as much as these.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_PCM = {1: "pcm_u8", 2: "pcm_s16le", 3: "pcm_s24le", 4: "pcm_s32le"}
# Sounds by what stands at the beginning: libsndfile knows thirty formats more, raw samples among them.
_SOUNDS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
_MAX_CHANNELS, _MAX_RATE = 64, 768_000
_CHUNK_FRAMES = 65_536
# Frames of a film that are decoded to see that they can be; what follows is believed.
_TRIED_FRAMES = 3000
_MAX_FPS = 1000
# Containers by what stands at the beginning, as FFmpeg names them. Without this list it takes a text that names other
# files, or addresses, for a film (HLS and concat playlists).
_CONTAINERS = ((4, b"ftyp", "mov"), (0, b"RIFF", "avi"), (0, b"\x1aE\xdf\xa3", "matroska"))

Facts = dict[str, Any]


class BadMedia(Exception):
    """The file cannot be used; the message says why, for people."""


def facts_of(path: Path, media_type: str) -> Facts:
    """Decodes a file and says what is in it: columns of its row.

    Args:
        path: Of a local file.
        media_type: `image`, `audio` or `video`.

    Raises:
        BadMedia: It is none, damaged, or too large.
    """
    return {"image": image_facts, "audio": audio_facts, "video": video_facts}[media_type](path)


def image_facts(path: Path) -> Facts:
    """Width and height in pixels as stored (a rotation in the metadata is not applied), format, number of frames."""
    with open_image(path) as image:
        width, height = image.size
        facts = {"width": width, "height": height, "codec": str(image.format).lower()}
        frames = getattr(image, "n_frames", 1)
    return facts if frames == 1 else {**facts, "frames": frames}


def write_pixels(path: Path, out: Path) -> Facts:
    """Writes the pixels of an image to `out`, RGB, row by row, a byte a value; what is transparent is white.

    Gives width and height.
    """
    with open_image(path) as image:
        opaque = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if opaque.mode == "RGBA":
            opaque = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    out.write_bytes(opaque.tobytes())
    return {"width": opaque.width, "height": opaque.height}


def open_image(path: Path) -> Image.Image:
    """A decoded image. Raises BadMedia."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=IMAGE_FORMATS)
            if not all(image.size):
                raise BadMedia("an image without pixels")
            image.load()
        except UnidentifiedImageError as error:
            raise BadMedia("not an image of a known format (JPEG, PNG, WebP, BMP, GIF, TIFF)") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadMedia(f"an image of more than {MAX_PIXELS:,} pixels") from error
    return image


def audio_facts(path: Path) -> Facts:
    """Duration in seconds, sample rate in hertz, channels, codec."""
    if sound_format(path) == "wav":
        return _wave_facts(path)
    from services.dataset.engines.compressed_sound import sound_facts

    return sound_facts(path)


def sound_format(path: Path) -> str:
    """`wav`, `flac`, `ogg` or `mp3`, by the first bytes. Raises BadMedia for what is none of these."""
    with path.open("rb") as file:
        start = file.read(4)
    if start in _SOUNDS:
        return _SOUNDS[start]
    if start.startswith(b"ID3") or is_mp3_frame(start):
        return "mp3"
    raise BadMedia("not a sound of a known format (WAV, FLAC, OGG, MP3)")


def is_mp3_frame(start: bytes) -> bool:
    """Whether these are the first bytes of a frame of MPEG audio, layer III."""
    return len(start) > 1 and start[0] == 0xFF and start[1] & 0xE6 == 0xE2


def require_form(channels: int, rate: int, frames: int) -> None:
    """Raises BadMedia for a sound that cannot be."""
    if not 1 <= channels <= _MAX_CHANNELS or not 1 <= rate <= _MAX_RATE:
        raise BadMedia(f"{channels} channels at {rate} Hz")
    if not frames:
        raise BadMedia("a sound without samples")


def _wave_facts(path: Path) -> Facts:
    with open_wave(path) as sound:
        rate, channels, frames = sound.getframerate(), sound.getnchannels(), sound.getnframes()
        width, read = sound.getsampwidth() * channels, 0
        while data := sound.readframes(_CHUNK_FRAMES):
            read += len(data) // width
    if read < frames:
        raise BadMedia(f"cut off: {read:,} of {frames:,} samples are there")
    return {
        "duration": round(frames / rate, 6),
        "sample_rate": rate,
        "channels": channels,
        "codec": _PCM[width // channels],
    }


def open_wave(path: Path) -> wave.Wave_read:
    """A WAV file of PCM samples. Raises BadMedia."""
    try:
        sound = wave.open(str(path), "rb")  # noqa: SIM115 - the caller closes it
    except (wave.Error, EOFError) as error:
        raise BadMedia(f"not a WAV file of PCM samples: {error or 'cut off'}") from error
    if sound.getsampwidth() not in _PCM:
        raise BadMedia(f"{8 * sound.getsampwidth()} bits a sample; 8, 16, 24 and 32 are read")
    require_form(sound.getnchannels(), sound.getframerate(), sound.getnframes())
    return sound


def video_facts(path: Path) -> Facts:
    """Width and height in pixels, frames a second, number of frames, duration in seconds, codec."""
    import cv2

    film = open_video(path)
    width, height = int(film.get(cv2.CAP_PROP_FRAME_WIDTH)), int(film.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps, stated = film.get(cv2.CAP_PROP_FPS), int(film.get(cv2.CAP_PROP_FRAME_COUNT))
    code = int(film.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=False)
    frames = 0
    while frames < _TRIED_FRAMES and film.grab():
        frames += 1
    if not frames:
        raise BadMedia("no frame can be decoded")
    if frames < min(stated, _TRIED_FRAMES):
        raise BadMedia(f"cut off: {frames:,} of {stated:,} frames can be decoded")
    frames = max(frames, stated)
    return {
        "width": width,
        "height": height,
        "fps": round(fps, 6),
        "frames": frames,
        "duration": round(frames / fps, 6),
        "codec": "".join(character for character in code.decode("latin-1") if character.isalnum()),
    }


def open_video(path: Path) -> Any:
    """A `cv2.VideoCapture`. Raises BadMedia."""
    import cv2

    film_format(path)
    # One thread: the limits of the child are meant for one.
    film = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not film.isOpened():
        raise BadMedia("the film cannot be opened: damaged, cut off, or of an unknown codec")
    size = film.get(cv2.CAP_PROP_FRAME_WIDTH) * film.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not 0 < size <= MAX_PIXELS:
        raise BadMedia(f"frames of {size:,.0f} pixels, at most {MAX_PIXELS:,}")
    fps = film.get(cv2.CAP_PROP_FPS)
    if not math.isfinite(fps) or not 0 < fps <= _MAX_FPS:
        raise BadMedia(f"{fps:g} frames a second")
    return film


def film_format(path: Path) -> str:
    """`mov` (MP4 too), `avi` or `matroska` (WebM too), by the first bytes. Raises BadMedia for what is none of them."""
    with path.open("rb") as file:
        start = file.read(16)
    for at, magic, name in _CONTAINERS:
        if start[at : at + len(magic)] == magic:
            return name
    raise BadMedia("not a film of a known format (MP4, MOV, AVI, Matroska, WebM)")
