"""Targets: what a request in plain language asks to be found in images, read by rules.

This is a reading by a list of words, not an understanding. It knows the colours and shapes below, in English and
Chinese, lists of them, and what is to be left out. What it does not know it reports, so that nobody takes half of a
request for all of it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from libs.common.domain import DomainError, invalid

MAX_REQUEST = 2_000

# The first word is the name of the concept.
COLOURS = (
    ("red", "crimson", "scarlet", "红色", "红"),
    ("orange", "橙色", "橘色", "橙"),
    ("yellow", "golden", "黄色", "黄"),
    ("green", "绿色", "绿"),
    ("cyan", "turquoise", "青色", "青"),
    ("blue", "蓝色", "蓝"),
    ("purple", "violet", "紫色", "紫"),
    ("black", "黑色", "黑"),
)
SHAPES = (
    ("circle", "disc", "disk", "圆形", "圆圈", "圆"),
    ("ellipse", "oval", "椭圆形", "椭圆"),
    ("square", "正方形", "方块", "方形"),
    ("rectangle", "长方形", "矩形"),
    ("triangle", "三角形", "三角"),
    ("star", "pentagram", "五角星", "星形", "星星"),
    ("cross", "plus sign", "十字形", "十字"),
    ("ring", "annulus", "圆环", "环形"),
)
_ANY = ("everything", "object", "thing", "shape", "figure", "item", "物体", "图形", "东西", "形状", "目标")
_NOT = ("but not", "and not", "not", "except for", "except", "excluding", "no", "without", "apart from", "other than")
_NOT_ZH = ("但不包括", "不包括", "不包含", "不要", "不标", "除去", "除了", "除")
_YES = ("but", "但是", "但", "只要", "以外", "之外", "外")
_STOP = (";", "；", "。", ". ", "!", "！")
# Words that ask, count or point, and say nothing of what is to be found.
_FILLER = frozenset(
    re.findall(
        r"\S+",
        "mark find label box detect locate annotate outline draw show identify select please all every each any the a"
        " an of in on and or also as well around me for to image images picture pictures photo bounding boxes them"
        " 请 标注 标出 标记 框出 找出 找到 检测 圈出 选出 图中 图片 图像 图里 画面 里 中 中的 所有 全部 每个 每一个"
        " 一切 的 和 与 及 以及 或 或者 还有 个 出 把 将 都 并 、 ， , ： : . ? ？",
    )
)


class _Kind(enum.Enum):
    COLOUR = enum.auto()
    SHAPE = enum.auto()
    ANY = enum.auto()
    NOT = enum.auto()
    YES = enum.auto()
    FILLER = enum.auto()
    UNKNOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be found: a colour, a shape, both; neither means any object.

    Attributes:
        colour, shape: names of concepts; empty for any.
    """

    colour: str = ""
    shape: str = ""

    @property
    def label(self) -> str:
        """Such as `red star`."""
        return " ".join(filter(None, (self.colour, self.shape))) or "object"


@dataclass(frozen=True)
class Reading:
    """What a request was taken for.

    Attributes:
        targets: what is to be found, in the order of the request; at least one.
        excluded: what is not to be marked although a target fits it.
        unread: words that the rules do not know. Where there are some, a person looks at the targets first.
    """

    targets: tuple[Target, ...]
    excluded: tuple[Target, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass
class _Draft:
    """A reading in the making: colours wait for the shape that they belong to."""

    targets: list[Target] = field(default_factory=list[Target])
    excluded: list[Target] = field(default_factory=list[Target])
    unread: list[str] = field(default_factory=list[str])
    colours: list[str] = field(default_factory=list[str])
    leaving_out: bool = False

    def add(self, shape: str) -> None:
        found = [Target(colour, shape) for colour in self.colours or [""]]
        (self.excluded if self.leaving_out else self.targets).extend(found)
        self.colours = []

    def turn(self, leaving_out: bool) -> None:
        """Ends a part of the request; a colour without a shape stands for all that has it."""
        found = self.excluded if self.leaving_out else self.targets
        if self.colours:
            # `everything red` is what is red, not everything.
            if found and found[-1] == Target():
                found.pop()
            self.add("")
        self.leaving_out = leaving_out


def read_targets(request: str) -> Reading:
    """Reads a request such as `Mark every red star, but not triangles` or `标注图中所有红色的五角星`.

    Colours belong to the next shape that follows: `red and blue circles` are red circles and blue circles, `red circles
    and squares` are red circles and squares of any colour. What follows a word like `except` is left out, up to `but`,
    `以外` or the end of the sentence.

    Raises:
        DomainError: INVALID_FIELD, it is empty or too long, or names nothing that is to be found.
    """
    if not request.strip():
        raise invalid("request", "is empty")
    if len(request) > MAX_REQUEST:
        raise invalid("request", f"is longer than {MAX_REQUEST:,} characters")
    draft = _Draft()
    before = _Kind.FILLER
    for kind, word in _tokens(request.casefold()):
        match kind:
            case _Kind.COLOUR:
                draft.colours.append(word)
            case _Kind.SHAPE:
                draft.add(word)
            case _Kind.ANY:
                draft.add("")
            case _Kind.NOT | _Kind.YES:
                # `everything but stars` leaves stars out; `no rings, but stars` does not.
                draft.turn(kind is _Kind.NOT or (word == "but" and before is _Kind.ANY))
            case _Kind.UNKNOWN:
                draft.unread.append(word)
            case _Kind.FILLER:
                continue
        before = kind
    draft.turn(False)
    if not draft.targets:
        known = ", ".join(words[0] for words in (*COLOURS, *SHAPES))
        raise invalid("request", f"names nothing to be found; the rules know {known}")
    return Reading(_once(draft.targets), _once(draft.excluded), tuple(dict.fromkeys(draft.unread)))


def read_target(prompt: str, field_name: str) -> Target:
    """What one phrase means: a colour, a shape, or both.

    Raises:
        DomainError: INVALID_FIELD, naming `field_name`.
    """
    try:
        reading = read_targets(prompt)
    except DomainError as error:
        raise invalid(field_name, f"{prompt!r}: {error.message}") from error
    if len(reading.targets) != 1 or reading.excluded or reading.unread:
        raise invalid(field_name, f"{prompt!r} is not one colour, one shape, or a colour and a shape")
    return reading.targets[0]


def _once(targets: list[Target]) -> tuple[Target, ...]:
    return tuple(dict.fromkeys(targets))


def _vocabulary() -> Mapping[str, tuple[_Kind, str]]:
    words = {word: (_Kind.FILLER, word) for word in _FILLER}
    for kind, concepts in ((_Kind.COLOUR, COLOURS), (_Kind.SHAPE, SHAPES), (_Kind.ANY, (_ANY,))):
        words |= {word: (kind, concept[0]) for concept in concepts for word in concept}
    words |= {word: (_Kind.NOT, word) for word in (*_NOT, *_NOT_ZH)}
    return words | {word: (_Kind.YES, word) for word in (*_YES, *_STOP)}


_WORDS = _vocabulary()
_ENGLISH = re.compile(r"[a-z]")


def _pattern() -> re.Pattern[str]:
    """The longest known word first; English words end where letters do, and may be plurals."""
    plural = {_Kind.SHAPE, _Kind.ANY}
    ordered = sorted(_WORDS, key=len, reverse=True)
    known = (
        rf"\b{re.escape(word)}\b" if _WORDS[word][0] not in plural else rf"\b{re.escape(word)}(?:e?s)?\b"
        for word in ordered
        if _ENGLISH.match(word)
    )
    return re.compile("|".join(chain(known, (re.escape(word) for word in ordered if not _ENGLISH.match(word)))))


_KNOWN = _pattern()


def _tokens(text: str) -> Iterator[tuple[_Kind, str]]:
    at = 0
    for found in _KNOWN.finditer(text):
        yield from _unknown(text[at : found.start()])
        yield _meaning(found[0])
        at = found.end()
    yield from _unknown(text[at:])


def _unknown(text: str) -> Iterator[tuple[_Kind, str]]:
    yield from ((_Kind.UNKNOWN, word) for word in re.findall(r"\w+", text))


def _meaning(word: str) -> tuple[_Kind, str]:
    singular = (word, word.removesuffix("s"), word.removesuffix("es"))
    return next(_WORDS[form] for form in singular if form in _WORDS)
