"""Broken images and sounds: whatever a file does, it costs at most the child that decodes it.

Films are in tests/integration/dataset/test_media.py, because their decoder takes a second to start.
"""

from __future__ import annotations

import io
import os
import random
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from services.dataset.engines import media_child
from services.dataset.engines.media import MediaChild, MediaError, _checked
from services.dataset.engines.ogg_pages import checksum
from tests.unit.dataset.media_files import compressed, image, sound


@pytest.fixture(scope="module")
def child() -> Iterator[MediaChild]:
    with MediaChild() as running:
        yield running


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says what it likes about itself."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(**tags: int) -> bytes:
    """An uncompressed TIFF of one strip with these tags."""
    known = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273}
    known |= {"samples": 277, "rows": 278, "count": 279}
    values = {"width": 4, "height": 4, "bits": 8, "compression": 1, "photometric": 1, "offset": 8, "samples": 1}
    values |= {"rows": 4, "count": 16, **tags}
    entries = b"".join(struct.pack("<HHLL", known[name], 4, 1, value) for name, value in values.items())
    return b"II*\x00" + struct.pack("<L", 24) + bytes(16) + struct.pack("<H", len(values)) + entries + bytes(4)


def endless_gif() -> bytes:
    """A frame that begins and never comes."""
    return b"GIF89a\x40\x00\x40\x00\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(4) + b"\x40\x00\x40\x00\x00\x08\xff"


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def lying_wave(offset: int, value: bytes) -> bytes:
    return changed(sound(), offset, value)


def lying_ogg(offset: int, value: bytes) -> bytes:
    """Vorbis whose first page says something else about itself, with the right checksum."""
    first = changed(VORBIS[:58], offset, value)
    return changed(first, 22, struct.pack("<L", checksum(changed(first, 22, bytes(4))))) + VORBIS[58:]


def animated_webp(cut: int) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()[: -cut or None]


BROKEN_IMAGES = {
    "nothing": (b"", "not an image"),
    "text": (b"hello" * 100, "not an image"),
    "wrong magic": (b"\x89PNX" + image()[4:], "not an image"),
    "only magic": (image()[:8], "decoded|not an image"),
    "cut PNG": (image()[:500], "truncated|decoded"),
    "cut JPEG": (image(format="JPEG")[:500], "truncated|decoded"),
    "cut WebP": (image(format="WEBP")[:200], "decoded|not an image"),
    "cut GIF": (image(format="GIF")[:-300], "truncated|decoded"),
    "cut BMP": (image(format="BMP")[:-300], "truncated"),
    "cut TIFF": (image(format="TIFF")[:-300], "decoded|truncated|not an image"),
    "endless GIF": (endless_gif(), "truncated|decoded"),
    "cut animated WebP": (animated_webp(20), "decoded|not an image"),
    "no pixels": (png(0, 0), "without pixels|decoded|not an image"),
    "no width": (png(0, 10), "without pixels|decoded|not an image"),
    "huge": (png(60_000, 60_000), "100,000,000 pixels"),
    "a little too large": (png(12_000, 9_000), "100,000,000 pixels"),
    "largest": (png(2**31 - 1, 2**31 - 1), "100,000,000 pixels"),
    "fewer rows": (png(100, 100)[:-20], "truncated|decoded"),
    "unknown filter": (png(4, 4, b"\x09" * 52), "decoded|broken"),
    "strange depth": (png(4, 4, b"\x00" * 52, depth=3), "decoded|not an image"),
    "wrong checksum": (image().replace(b"IDAT", b"IDAX"), "decoded|truncated|not an image"),
    "TIFF of nothing": (tiff(width=0), "without pixels|decoded|not an image"),
    "TIFF of samples": (tiff(samples=60_000), "decoded|not an image"),
    "TIFF out of itself": (tiff(offset=2**31), "decoded|truncated"),
    "TIFF that is large": (tiff(width=2**20, height=2**20), "100,000,000 pixels"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not an image"),
}
BROKEN_SOUNDS = {
    "nothing": (b"", "not a sound"),
    "image": (image(), "not a sound"),
    "wrong magic": (b"RIFX" + sound()[4:], "not a sound"),
    "cut header": (sound()[:30], "not a WAV"),
    "cut": (sound()[:-100], "cut off"),
    "no samples": (sound(seconds=0), "without samples"),
    "no channels": (lying_wave(22, b"\x00\x00"), "not a WAV"),
    "no rate": (lying_wave(24, bytes(4)), "0 Hz"),
    "absurd rate": (lying_wave(24, b"\xff\xff\xff\x7f"), "Hz"),
    "absurd channels": (lying_wave(22, b"\xff\x00"), "channels|cut off|not a WAV"),
    "absurd width": (lying_wave(34, b"\xff\x00"), "bits a sample|not a WAV"),
    "compressed": (lying_wave(20, b"\x55\x00"), "not a WAV"),
    "size that lies": (lying_wave(40, b"\xff\xff\xff\x7f"), "cut off"),
}
FLAC, MP3 = compressed("FLAC"), compressed("MP3")
VORBIS, OPUS = compressed("OGG", "VORBIS"), compressed("OGG", "OPUS")
# As VORBIS and MP3, but with several pages and frames in which damage has room.
LONG_VORBIS, LONG_MP3 = compressed("OGG", "VORBIS", 400_000), compressed("MP3", frames=80_000)
NOISE = random.Random(3).randbytes(5000)
BROKEN_SOUNDS |= {
    "text named .mp3": (b"This is no music.\n" * 50, "not a sound"),
    "text in UTF-16": ("no music".encode("utf-16") * 50, "not a sound"),
    "MPEG of layer II": (b"\xff\xfd\x90\x04" + MP3[4:], "not a sound"),
    "AIFF": (b"FORM" + bytes(4) + b"AIFFCOMM" + bytes(99), "not a sound"),
    "tag of nothing": (b"ID3\x04\0\0\x7f\x7f\x7f\x7f", "no MP3 behind its tag"),
    "WAV behind a tag": (b"ID3\x04" + bytes(6) + sound(), "no MP3 behind its tag"),
    "FLAC with wrong magic": (b"fLaX" + FLAC[4:], "not a sound"),
    "FLAC of a header": (FLAC[:30], "opened"),
    "half a FLAC": (FLAC[: len(FLAC) // 2], "lost sync|cut off"),
    "FLAC without its end": (FLAC[:-100], "lost sync|cut off"),
    "garbage in a FLAC": (changed(FLAC, len(FLAC) // 2, NOISE[:300]), "lost sync|flac decoder"),
    "FLAC that says it is endless": (changed(FLAC, 21, b"\xff" * 5), "cut off: 4,000 of 68,719,476,735 samples"),
    "FLAC without samples": (changed(FLAC[:42], 21, bytes([FLAC[21] & 0xF0]) + bytes(4)), "opened|samples|cut off"),
    "FLAC of no rate": (changed(FLAC, 18, bytes(3)), "opened|Hz"),
    "OGG of zeros": (b"OggS" + bytes(200), "damaged: the page at byte 0"),
    "OGG of a header": (VORBIS[:28], "the page at byte 0 is not whole"),
    "half a Vorbis": (LONG_VORBIS[: len(LONG_VORBIS) // 2], "cut off or damaged: the page"),
    "Vorbis without its last page": (LONG_VORBIS[: LONG_VORBIS.rindex(b"OggS")], "cut off or damaged"),
    "garbage in a Vorbis": (changed(LONG_VORBIS, 20_000, NOISE), "cut off or damaged: the page"),
    "one wrong bit in an Opus": (changed(OPUS, 600, bytes([OPUS[600] ^ 1])), "damaged: the page"),
    "Vorbis of no rate": (lying_ogg(40, bytes(4)), "opened|Hz"),
    "Vorbis of an absurd rate": (lying_ogg(40, b"\xff\xff\xff\x7f"), "opened|Hz"),
    "Vorbis of absurd channels": (lying_ogg(39, b"\xff"), "opened|channels"),
    "Vorbis without samples": (compressed("OGG", "VORBIS", frames=0), "without samples"),
    "half an MP3": (LONG_MP3[: len(LONG_MP3) // 2], "cut off"),
    "MP3 without its end": (LONG_MP3[:-200], "cut off"),
    "garbage in an MP3": (changed(LONG_MP3, len(LONG_MP3) // 2, NOISE), "cut off"),
    "MP3 of one header": (MP3[:4], "opened"),
    "MP3 of zeros": (MP3[:4] + bytes(5000), "damaged or cut off"),
}
CASES = [("image", name, *case) for name, case in BROKEN_IMAGES.items()]
CASES += [("audio", name, *case) for name, case in BROKEN_SOUNDS.items()]


@pytest.mark.parametrize(("media_type", "name", "data", "reason"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_a_broken_file_is_named(
    child: MediaChild, tmp_path: Path, media_type: str, name: str, data: bytes, reason: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=rf"{reason}"):
        child.probe(path, media_type)
    # The same child goes on.
    path.write_bytes(image())
    before = child.pid
    assert child.probe(path, "image")["width"] == 32
    assert child.pid == before, name


# A tag of a thousand bytes, which say nothing.
TAGGED_MP3 = b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000) + MP3
HALF_A_SECOND = {"duration": 0.5, "sample_rate": 8000, "channels": 1}
# As a program writes it that does not know how long the sound will be.
ENDLESS_FLAC = changed(FLAC, 21, bytes([FLAC[21] & 0xF0]) + bytes(4))


@pytest.mark.parametrize(
    ("media_type", "data", "facts"),
    [
        ("image", image(), {"width": 32, "height": 24, "codec": "png"}),
        ("image", image(format="JPEG"), {"width": 32, "height": 24, "codec": "jpeg"}),
        ("image", image(format="WEBP"), {"width": 32, "height": 24, "codec": "webp"}),
        ("image", image(mode="CMYK", format="TIFF"), {"width": 32, "height": 24, "codec": "tiff"}),
        ("image", image(mode="P", format="GIF"), {"width": 32, "height": 24, "codec": "gif"}),
        ("image", image(mode="1", format="BMP"), {"width": 32, "height": 24, "codec": "bmp"}),
        ("image", animated_webp(0), {"width": 16, "height": 16, "codec": "webp", "frames": 2}),
        ("audio", sound(), {"duration": 0.1, "sample_rate": 8000, "channels": 1, "codec": "pcm_s16le"}),
        ("audio", sound(1, 44100, 2, 4), {"duration": 1.0, "sample_rate": 44100, "channels": 2, "codec": "pcm_s32le"}),
        ("audio", FLAC, {**HALF_A_SECOND, "codec": "flac"}),
        ("audio", compressed("FLAC", "PCM_24", channels=8), {**HALF_A_SECOND, "channels": 8, "codec": "flac"}),
        ("audio", ENDLESS_FLAC, {**HALF_A_SECOND, "codec": "flac"}),
        ("audio", VORBIS, {**HALF_A_SECOND, "codec": "vorbis"}),
        ("audio", VORBIS + b"TAG" + bytes(125), {**HALF_A_SECOND, "codec": "vorbis"}),
        ("audio", OPUS, {**HALF_A_SECOND, "codec": "opus"}),
        ("audio", MP3, {**HALF_A_SECOND, "codec": "mp3"}),
        ("audio", TAGGED_MP3, {**HALF_A_SECOND, "codec": "mp3"}),
    ],
)
def test_facts(child: MediaChild, tmp_path: Path, media_type: str, data: bytes, facts: dict[str, object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert child.probe(path, media_type) == facts


def test_an_mp3_that_does_not_say_how_long_it_is(child: MediaChild, tmp_path: Path) -> None:
    """Without the first frame, which has the tag: all of it is read, whatever its size lets guess."""
    path = tmp_path / "file"
    frames = LONG_MP3[LONG_MP3.index(LONG_MP3[:2], 4) :]
    for data in (frames, frames + b"TAG" + bytes(125), b"ID3\x04\0\0\0\x01\0\0" + bytes(1 << 14) + frames):
        path.write_bytes(data)
        assert child.probe(path, "audio")["duration"] == pytest.approx(10, abs=0.2)
    # The pipes of broken ones are closed.
    for _ in range(media_child._OPEN_FILES):
        path.write_bytes(frames[:5000])
        with pytest.raises(MediaError, match="damaged or cut off"):
            child.probe(path, "audio")
        path.write_bytes(MP3[:4] + bytes(200_000))
        with pytest.raises(MediaError, match="damaged or cut off"):
            child.probe(path, "audio")


def resident(pid: int | None) -> int:
    """The most memory that a process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def test_hours_of_silence_are_read_in_constant_memory(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    path, frames = tmp_path / "file", 2 * 3600 * 8000
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(0, frames, 1_600_000):
            file.write(np.zeros(1_600_000, np.int16))
    assert frames / path.stat().st_size > 200
    with MediaChild() as child:
        path.with_name("short").write_bytes(FLAC)
        child.probe(path.with_name("short"), "audio")
        before = resident(child.pid)
        assert child.probe(path, "audio")["duration"] == 7200
        # As samples it has 230 MB.
        assert resident(child.pid) - before < 20_000_000


def test_a_child_that_dies_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(image())
    with MediaChild() as child:
        child.probe(path, "image")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSEGV)
        with pytest.raises(MediaError, match="crashed"):
            child.probe(path, "image")
        assert child.pid is None
        assert child.probe(path, "image")["height"] == 24
        last = child.pid
    assert last is not None
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_child_that_hangs_is_ended(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Opening a pipe without a writer waits for ever.
    with MediaChild(wall_seconds=0.3) as child, pytest.raises(MediaError, match=r"longer than 0\.3 s"):
        child.probe(pipe, "image")


def limited(code: str) -> subprocess.CompletedProcess[bytes]:
    """Runs code in a process with the limits of the child."""
    before = "from services.dataset.engines import media_child as c; c.limit_resources()\n"
    return subprocess.run([sys.executable, "-c", before + code], capture_output=True, check=False, timeout=20)


def test_limits_hold() -> None:
    assert b"MemoryError" in limited(f"bytes({media_child.MEMORY_BYTES})").stderr
    assert limited("bytes(100 * 1024 ** 2)").returncode == 0
    assert b"Too many open files" in limited("import os\nwhile True: os.dup(1)").stderr
    request = {"path": "/dev/null", "media_type": "image"}
    cpu = limited(f"import resource; c._answer({request}); print(resource.getrlimit(resource.RLIMIT_CPU)[0])").stdout
    assert 0 < int(cpu) <= media_child.CPU_SECONDS + 2


def test_there_is_no_network() -> None:
    look = "sorted(os.listdir('/sys/class/net')) and open('/proc/net/dev').read()"
    code = f"import os\nprint(c.confine.leave_network(), {look})"
    output = limited(code).stdout.decode()
    if output.startswith("False"):
        pytest.skip("this kernel lets no process give up its network")
    assert {line.split(":")[0].strip() for line in output.splitlines()[2:] if ":" in line} <= {"lo"}


def test_what_a_child_says_is_not_believed() -> None:
    told = {"width": 3, "codec": "x" * 33, "height": [1], "sha256": "0" * 64, "fps": 25.0}
    assert _checked(told) == {"width": 3, "fps": 25.0}
    with pytest.raises(MediaError):
        _checked([1])
