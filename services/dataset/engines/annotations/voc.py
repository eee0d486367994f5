"""Pascal VOC: an XML file for each image, boxes by their corners.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
Coordinates are counted from 0 and may have fractions, as labelling tools write them.

Labels without an object are in `labelmap.txt`, which is CVAT's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from libs.compute.versions import Row
from services.dataset.engines.annotations.pictures import (
    Categories,
    Members,
    Object,
    Picture,
    checked_box,
    member,
    number,
    picture_of,
    side,
    with_categories,
)
from services.dataset.engines.lines import Line
from services.dataset.engines.losses import Inexpressible, Losses
from services.dataset.engines.xml_text import xml_text
from services.dataset.engines.zip_writer import Archive

_MAP, _MAP_HEAD = "labelmap.txt", "# label:color_rgb:parts:actions"
# Of one image; its tree is in memory.
_MAX_BYTES, _MAX_DEPTH = 8 * 1024 * 1024, 16
# What VOC knows of an object beside its name and box.
_FLAGS = ("truncated", "difficult", "occluded")
_KNOWN = ("label", "box", "pose", *_FLAGS)
_DIGITS = re.compile(r"[+-]?\d{1,20}(\.\d{0,30})?([eE][+-]?\d{1,2})?")


def read_voc(files: Mapping[str, bytes]) -> Iterator[Line]:
    """A row for each XML file, those without objects too.

    Args:
        files: By their path in the archive; what is no XML is left aside.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for path in (path for path in files if path.lower().endswith(".xml")):
        try:
            rows.append(read_annotation(files[path], path, problems))
        except Inexpressible as reason:
            problems.append(f"{path}: {reason}")
    listed = [{"id": at, "name": name} for at, name in enumerate(_labels(files), 1)]
    for at, row in enumerate(with_categories(rows, listed, 1), 1):
        yield Line(at, row)
    yield from (Line(at, None, problem) for at, problem in enumerate(problems, len(rows) + 1))


def _labels(files: Mapping[str, bytes]) -> list[str]:
    lines = files.get(_MAP, b"").decode("utf-8", "replace").split("\n")
    return [line.rsplit(":", 3)[0] for line in lines if line.count(":") >= 3 and line != _MAP_HEAD]


def read_annotation(data: bytes, path: str, problems: list[str]) -> Row:
    """The row of one file.

    Args:
        data: The XML.
        path: Of it, for people.
        problems: Gets what is wrong with single objects, which are left out.

    Raises:
        Inexpressible: It is no annotation.
    """
    root = parse(data)
    image = root.findtext("filename") or ""
    if not image:
        raise Inexpressible("filename is missing")
    row: Row = {"image": image}
    for name in ("width", "height"):
        given = root.findtext(f"size/{name}")
        if given is not None:
            row[name] = side(_number(given, name), name)
    row["objects"] = []
    for at, one in enumerate(root.findall("object")):
        try:
            row["objects"].append(_object(one, row))
        except Inexpressible as reason:
            problems.append(f"{path}, object {at + 1}: {reason}")
    return row


def _object(given: Element, row: Row) -> Object:
    label = given.findtext("name") or ""
    if not label:
        raise Inexpressible("name is missing")
    left, top, right, bottom = (
        _number(given.findtext(f"bndbox/{name}") or "", name) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    box = checked_box([left, top, right - left, bottom - top], "object", row.get("width"), row.get("height"))
    found: Object = {"label": label, "box": box}
    pose = given.findtext("pose")
    if pose and pose != "Unspecified":
        found["pose"] = pose
    for name in _FLAGS:
        if (given.findtext(name) or "").strip() in ("1", "true", "True"):
            found[name] = 1
    return found


def _number(text: str, name: str) -> float:
    if not _DIGITS.fullmatch(text.strip()):
        raise Inexpressible(f"{name}: not a number")
    return number(float(text), name)


def parse(data: bytes) -> Element:
    """The tree of an XML document without a document type: there is nothing that could be an entity of its own.

    Raises:
        Inexpressible: It is none, is too large or too deep.
    """
    if len(data) > _MAX_BYTES:
        raise Inexpressible(f"longer than {_MAX_BYTES:,} bytes")
    tree, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise Inexpressible("nested too deeply")
        tree.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(tag)

    def refuse(*_: Any) -> None:
        raise Inexpressible("has a document type, which may hide anything")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Inexpressible(f"not valid XML: {error}") from error
    return tree.close()


def write_voc(rows: Iterable[tuple[str, Row]], listed: Iterable[Any], file: BinaryIO, losses: Losses) -> None:
    """Writes a zip.

    Args:
        rows: Row id and row of each image.
        listed: `categories` of all rows.
        file: Where it goes.
        losses: Told what is left out or changed.
    """
    archive, members, categories = Archive(file), Members(), Categories(listed)
    for row_id, row in rows:
        try:
            picture = picture_of(row)
            data = _document(picture).encode()
            path = members.take(member(picture.image, "Annotations", ".xml"))
        except Inexpressible as reason:
            losses.leave_out(str(reason), row_id)
            continue
        for name in sorted({name for one in picture.objects for name in one} - set(_KNOWN)):
            losses.change(f"VOC has no place for {name} of an object", row_id)
        archive.add(path, data)
        for one in picture.objects:
            categories.id_of(one["label"])
    lines = [_MAP_HEAD, *(f"{label}:::" for label in categories.all if "\n" not in label)]
    archive.add(_MAP, "\n".join([*lines, ""]).encode())
    archive.close()


def _document(picture: Picture) -> str:
    sides = [(name, value) for name, value in (("width", picture.width), ("height", picture.height)) if value]
    size = "".join(_element(name, str(value)) for name, value in sides)
    objects = "".join(map(_written, picture.objects))
    body = f"{_element('filename', picture.image)}<size>{size}</size>{objects}"
    return f"<annotation>{body}</annotation>\n"


def _written(one: Object) -> str:
    x, y, across, down = one["box"]
    corners = {"xmin": x, "ymin": y, "xmax": x + across, "ymax": y + down}
    box = "".join(_element(name, f"{value:.6f}".rstrip("0").rstrip(".")) for name, value in corners.items())
    pose = _element("pose", one["pose"]) if isinstance(one.get("pose"), str) else ""
    flags = "".join(_element(name, "1" if one.get(name) else "0") for name in _FLAGS)
    return f"<object>{_element('name', one['label'])}{pose}{flags}<bndbox>{box}</bndbox></object>"


def _element(name: str, text: str) -> str:
    return f"<{name}>{xml_text(text, f'{name}: has characters that XML cannot hold')}</{name}>"
