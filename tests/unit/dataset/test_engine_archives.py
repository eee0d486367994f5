"""Archives made to harm or to mislead a reader: each bad entry is set apart with a reason, the others are read."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.archives import tar_reader, zip_reader
from libs.archives.entries import BadEntry, Limits
from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.tar_reader import read_tar
from libs.archives.zip_reader import read_zip

GOOD = ("good.txt", b"good bytes")


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


def info(name: str, **attributes: Any) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("x")
    # Set afterwards: the constructor repairs what these tests are about.
    entry.filename = name
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


def tarred(*entries: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w", format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as file:  # type: ignore[call-overload]
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry, io.BytesIO(b"x" * entry.size))
                continue
            member = tarfile.TarInfo(entry[0])
            member.size = len(entry[1])
            file.addfile(member, io.BytesIO(entry[1]))
    return buffer.getvalue()


def member(name: str, type: bytes, **attributes: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = type
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


def contents(data: bytes, **limits: int) -> dict[str, bytes | str]:
    """The bytes of each entry, or why it is set apart."""
    read = read_tar if data[257:262] == b"ustar" or not data.startswith((b"PK", b"NO")) else read_zip
    found: dict[str, bytes | str] = {}
    for entry in read(io.BytesIO(data), Limits(**limits)):
        try:
            value: bytes | str = entry.error or b"".join(entry.chunks)
        except BadEntry as error:
            value = str(error)
        # A second entry of one name must not hide what became of the first.
        found[entry.name if entry.name not in found else f"{entry.name} again"] = value
    return found


def patched(data: bytes, signature: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """The bytes with `value` written at `offset` behind a signature."""
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def encrypted(data: bytes) -> bytes:
    return patched(patched(data, LOCAL, 6, b"\x01\x00"), CENTRAL, 8, b"\x01\x00")


def overlapping() -> bytes:
    """Two central entries that share one local header, as in Fifield's bomb."""
    plain = zipped(("a.txt", b"same bytes" * 100), ("b.txt", b"other"), GOOD)
    return patched(plain, CENTRAL, 42, struct.pack("<L", 0), which=1)


def quoted() -> bytes:
    """The first entry reaches over the second one: both read the same bytes."""
    inner = zipped(("b.txt", b"inner" * 50), method=zipfile.ZIP_STORED)
    local = inner[: inner.index(CENTRAL)]
    crc, size = zlib.crc32(local), len(local)
    first = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 0, crc, size, size, 5, 0) + b"a.txt"
    central = inner[inner.index(CENTRAL) : inner.index(END)]
    moved = patched(central, CENTRAL, 42, struct.pack("<L", len(first)))
    outer = struct.pack("<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 0, crc, size, size, 5, 0, 0, 0, 0, 0, 0) + b"a.txt"
    directory = outer + moved
    end = struct.pack("<4s4H2LH", END, 0, 0, 2, 2, len(directory), len(first) + len(local), 0)
    return first + local + directory + end


MANY_PARTS = "/".join("d" * 40) + "/a.txt"
BAD_NAMES = [
    ("/etc/passwd", "absolute"),
    ("C:/windows/a.txt", "absolute"),
    ("c:a.txt", "absolute"),
    ("../up.txt", "parent"),
    ("a/../../up.txt", "parent"),
    ("a\\..\\up.txt", "backslash"),
    ("a//b.txt", "empty part"),
    ("a/./b.txt", "empty part"),
    ("a\nb.txt", "control"),
    ("a\x1b[2Jb.txt", "control"),
    ("gpj.\u202egnp.exe", "control"),
    (MANY_PARTS, "folders deep"),
    ("n" * 256, "too long"),
    ("/".join(["p" * 200] * 6), "too long"),
    ("inner.zip", "archive inside"),
    ("inner.TAR.GZ", "archive inside"),
    ("GOOD.txt", "same name"),
    ("./good.txt", "same name"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES)
@pytest.mark.parametrize(
    "packed", [zipped, tarred, lambda *entries: tarred(*entries, format=tarfile.PAX_FORMAT)], ids=["zip", "gnu", "pax"]
)
def test_a_bad_name_is_set_apart(packed: Callable[..., bytes], name: str, reason: str) -> None:
    entry = info(name, compress_type=zipfile.ZIP_DEFLATED) if packed is zipped else name
    found = list(contents(packed(GOOD, (entry, b"bad"), ("last.txt", b"last"))).items())
    assert found[0] == GOOD
    assert reason in str(found[1][1])
    assert found[2] == ("last.txt", b"last")


ZIP_ENTRIES = {
    "link": (zipped((info("link", external_attr=0o120777 << 16, create_system=3), b"/etc/passwd"), GOOD), "a link"),
    "device": (zipped((info("dev", external_attr=0o060666 << 16, create_system=3), b""), GOOD), "a device"),
    "pipe": (zipped((info("fifo", external_attr=0o010666 << 16, create_system=3), b""), GOOD), "a device, a pipe"),
    "NUL": (zipped((info("a#b.txt"), b"x"), GOOD).replace(b"a#b", b"a\x00b"), "control"),
    "no UTF-8": (zipped((info("\u00e9\u00e9.txt"), b"x"), GOOD).replace(b"\xc3\xa9\xc3", b"\xc3\x28\xc3"), "UTF-8"),
    "normal form": (zipped(("\u00e9.txt", b"x"), ("e\u0301.txt", b"y"), GOOD), "same name"),
    "twice": (zipped(("a.txt", b"x"), ("b.txt", b"y"), GOOD).replace(b"b.txt", b"a.txt"), "same name"),
    "encrypted": (encrypted(zipped(("a.txt", b"x"), GOOD)), "encrypted"),
    "method": (zipped((info("a.txt", compress_type=zipfile.ZIP_LZMA), b"x"), GOOD), "method 14"),
    "bomb": (zipped(("a.txt", bytes(70 * 1024 * 1024)), GOOD), "200 times"),
    "shared": (overlapping(), "contradict"),
    "overlap": (quoted(), "overlaps"),
    "nested": (zipped(("a.txt", zipped(GOOD)), GOOD), "archive inside"),
    "wrong CRC": (patched(zipped(("a.txt", b"x"), GOOD), LOCAL, 14, b"abcd"), "contradict"),
    "wrong bytes": (zipped(("a.txt", b"xyz"), GOOD, method=zipfile.ZIP_STORED).replace(b"xyz", b"abc"), "checksum"),
    "other name": (patched(zipped(("a.txt", b"x"), GOOD), LOCAL, 30, b"b"), "contradict"),
    "other method": (patched(zipped(("a.txt", b"x"), GOOD), LOCAL, 8, b"\x00\x00"), "contradict"),
    "no header": (patched(zipped(("a.txt", b"x"), GOOD), LOCAL, 0, b"NO"), "not where"),
    "outside": (patched(zipped(("a.txt", b"x"), GOOD), CENTRAL, 42, b"\xf0\xff\xff\x7f"), "not where"),
    "damaged": (patched(zipped(("a.txt", b"x" * 99), GOOD), LOCAL, 35, b"\xff\xff"), "damaged"),
}


@pytest.mark.parametrize("what", ZIP_ENTRIES)
def test_a_bad_entry_of_a_zip_is_set_apart(what: str) -> None:
    data, reason = ZIP_ENTRIES[what]
    found = contents(data)
    assert any(reason in value for value in found.values() if isinstance(value, str)), found
    if what != "overlap":
        assert found["good.txt"] == b"good bytes"


def test_a_size_that_lies_is_noticed() -> None:
    plain = zipped(("a.txt", b"x" * 5000), GOOD)
    for size in (1, 4999, 5001, 10**6):
        lying = patched(patched(plain, LOCAL, 22, struct.pack("<L", size)), CENTRAL, 24, struct.pack("<L", size))
        found = contents(lying)
        assert "checksum" in str(found["a.txt"])
        assert found["good.txt"] == b"good bytes"


def test_a_bomb_that_says_it_is_small_is_not_unpacked() -> None:
    plain = zipped(("a.txt", bytes(20 * 1024 * 1024)))
    small = struct.pack("<L", 1000)
    lying = patched(patched(plain, LOCAL, 22, small), CENTRAL, 24, small)
    unpacked = 0
    for entry in read_zip(io.BytesIO(lying)):
        with pytest.raises(BadEntry, match="checksum"):
            for chunk in entry.chunks:
                unpacked += len(chunk)
    assert unpacked == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK" + b"nothing" * 10, "no central directory"),
        (zipped(GOOD)[:-30], "no central directory"),
        (zipped(GOOD) + b"behind", "behind the end"),
        (patched(zipped(GOOD), END, 10, b"\x09\x00"), "not where"),
        (patched(zipped(GOOD, ("b", b"")), END, 8, b"\x01\x00\x01\x00"), "more than the entries"),
        (patched(zipped(GOOD), END, 4, b"\x01\x00"), "several parts"),
        (patched(zipped(GOOD), END, 10, b"\xff\xff"), "zip64"),
        (patched(zipped(GOOD), CENTRAL, 0, b"NO"), "damaged"),
        (patched(zipped(GOOD), CENTRAL, 30, b"\xff\xff"), "damaged"),
        (b"x" * 2000, "not a tar"),
        (b"", "not a tar"),
    ],
)
def test_an_archive_without_order_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableFile, match=reason):
        contents(data)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (member("link", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (member("link", tarfile.LNKTYPE, linkname="good.txt"), "a link"),
        (member("dev", tarfile.CHRTYPE), "a device"),
        (member("dev", tarfile.BLKTYPE), "a device"),
        (member("fifo", tarfile.FIFOTYPE), "a device or a pipe"),
        (member("sparse", tarfile.GNUTYPE_SPARSE, size=600), "sparse"),
        (member("what", b"Z", size=600), "a device or a pipe"),
    ],
)
def test_a_bad_entry_of_a_tar_is_set_apart(entry: tarfile.TarInfo, reason: str) -> None:
    found = contents(tarred(entry, GOOD))
    assert reason in str(found[entry.name])
    assert found["good.txt"] == b"good bytes"


LONG = tarred(("n" * 200, b"x"), GOOD)
PAX = tarred(("\u00fc" * 100, b"x"), GOOD, format=tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tarred(GOOD, ("b.txt", b"b"))[:1100], "cut off"),
        (tarred(GOOD)[:1024], "cut off"),
        (tarred(GOOD)[:1024] + b"x" * 512, "header of the tar is damaged"),
        (gzip.compress(tarred(GOOD, ("b.txt", bytes(range(256)) * 999)))[:-40], "damaged or cut off"),
        (gzip.compress(tarred(GOOD, ("b.txt", bytes(70 << 20)))), "200 times"),
        (LONG[:124] + b"77777777777\x00" + LONG[136:], r"damaged|not a tar"),
    ],
)
def test_a_broken_tar_is_read_up_to_the_break(data: bytes, reason: str) -> None:
    with pytest.raises((BrokenOff, UnreadableFile), match=reason):
        contents(data)


@pytest.mark.parametrize("records", [b"99 path=x\n", b"x path=x\n", b"11 path=x"])
def test_a_damaged_extended_header_is_noticed(records: bytes) -> None:
    header = member("pax", tarfile.XHDTYPE)
    header.size = len(records)
    block = header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\x00")
    with pytest.raises(BrokenOff, match="extended header"):
        contents(tarred(GOOD)[:1024] + block + tarred(GOOD))


def test_a_header_that_names_something_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert contents(LONG)["n" * 200] == b"x"
    monkeypatch.setattr(tar_reader, "_MOST_EXTENDED", 100)
    for data in (LONG, PAX):
        with pytest.raises(BrokenOff, match="too long"):
            contents(data)


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_limits(packed: Callable[..., bytes]) -> None:
    data = packed(("a", b"x" * 500), ("b", b"x" * 1500), ("c", b"x" * 500))
    assert list(contents(data, entries=3)) == ["a", "b", "c"]
    with pytest.raises((BrokenOff, UnreadableFile), match=r"at most 2|more than 2"):
        contents(data, entries=2)
    found = contents(data, entry_bytes=1000)
    assert [isinstance(value, bytes) for value in found.values()] == [True, False, True]
    with pytest.raises(BrokenOff, match="more than 2,000 bytes"):
        contents(data, total_bytes=2000)


def test_good_archives_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tar_reader, zip_reader):
        monkeypatch.setattr(module, "CHUNK", 1000)
    files = {"img/a.png": b"\x89PNG" * 999, "img/\u56fe.png": bytes(3000), "empty.txt": b"", "b": b"x" * 999}
    entries = list(files.items())
    assert contents(zipped(*entries)) == contents(zipped(*entries, method=zipfile.ZIP_STORED)) == files
    for data in (
        tarred(*entries),
        tarred(*entries, format=tarfile.PAX_FORMAT),
        tarred(*entries, mode="w:gz"),
        tarred(member("img", tarfile.DIRTYPE), *[(f"./{name}", data) for name, data in entries]),
    ):
        assert contents(data) == files
    # An entry that nobody reads does not shift the next one.
    assert [entry.name for entry in read_tar(io.BytesIO(tarred(*entries)))] == list(files)


def test_streamed_and_large_zips_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.RawIOBase):
        """Cannot seek, so sizes stand behind the data."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", b"streamed")
        with file.open(zipfile.ZipInfo("b.txt"), "w", force_zip64=True) as entry:
            entry.write(b"large")
    assert contents(pipe.data) == {"a.txt": b"streamed", "b.txt": b"large"}
    # With so low a limit, zipfile writes the directory of a large archive.
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    large = zipped(GOOD, ("b.txt", b"b"))
    assert b"PK\x06\x06" in large
    assert contents(patched(large, END, 8, b"\xff\xff\xff\xff")) == {GOOD[0]: GOOD[1], "b.txt": b"b"}
    with pytest.raises(UnreadableFile, match="large one"):
        contents(patched(large.replace(b"PK\x06\x06", b"PK\x06\x09"), END, 8, b"\xff\xff\xff\xff"))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_told_apart_from_our_own_errors(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([zipped(GOOD, ("b.txt", b"y" * 300)), tarred(GOOD, ("b.txt", b"y" * 300)), PAX]))
    at = data.draw(st.integers(0, len(base) - 1))
    broken = base[:at] + data.draw(st.binary(min_size=1, max_size=8)) + base[at + data.draw(st.integers(0, 9)) :]
    try:
        found = contents(broken)
    except (BrokenOff, UnreadableFile):
        return
    assert all(isinstance(value, bytes | str) for value in found.values())
