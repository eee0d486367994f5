"""One copy of an image, a sound or a film, changed at random. Runs only in the limited child."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.dataset.engines.decoding import facts_of, open_image
from services.dataset.engines.image_augmentation import IMAGE_OPERATIONS, Box, clipped, plain
from services.dataset.engines.media import Augmented

# Fine enough that another generation of it is not seen.
_JPEG_QUALITY = 95

Step = Mapping[str, Any]


def augment_file(path: Path, out: Path, media_type: str, steps: Sequence[Step], boxes: Sequence[Box]) -> Augmented:
    """Changes a file and writes the result.

    Args:
        out: What is written; its ending says how.
        media_type: `image`, `audio` or `video`.
        steps: `operator`, `seed`, and parameters of each.
        boxes: Left, top, width, height in pixels, of an image.

    Raises:
        BadMedia: The file is broken, or cannot be changed.
    """
    chosen = [(step, random) for step in steps if (random := _random(step)).random() < step["probability"]]
    if not chosen:
        return Augmented({}, list(boxes), [])
    moved: list[Box | None] = list(boxes)
    if media_type == "image":
        moved = _image(path, out, chosen, list(boxes))
    elif media_type == "audio":
        _audio(path, out, chosen)
    elif not (chosen := _video(path, out, chosen)):
        return Augmented({}, list(boxes), [])
    return Augmented(facts_of(out, media_type), moved, [step["operator"] for step, _ in chosen])


def _random(step: Step) -> np.random.Generator:
    return np.random.default_rng(step["seed"])


Chosen = list[tuple[Step, np.random.Generator]]


def _image(path: Path, out: Path, chosen: Chosen, boxes: list[Box]) -> list[Box | None]:
    with open_image(path) as original:
        exif = original.info.get("exif")
        image = plain(original)
    for step, random in chosen:
        image, boxes = IMAGE_OPERATIONS[step["operator"]](image, boxes, step, random)
    options: dict[str, Any] = {"exif": exif} if exif else {}
    if out.suffix == ".jpg":
        image.convert("L" if image.mode == "L" else "RGB").save(out, "JPEG", quality=_JPEG_QUALITY, **options)
    else:
        image.save(out, "PNG", **options)
    return [clipped(box, *image.size) for box in boxes]


def _audio(path: Path, out: Path, chosen: Chosen) -> None:
    from services.dataset.engines.audio_augmentation import AUDIO_OPERATIONS, read_samples, write_samples

    samples, form = read_samples(path)
    write_samples(out, _changed(chosen, samples, AUDIO_OPERATIONS), form)


def _video(path: Path, out: Path, chosen: Chosen) -> Chosen:
    """Gives the steps that changed it: those for a sound only where there is one."""
    from services.dataset.engines.video_augmentation import SOUND_OPERATIONS, VIDEO_OPERATIONS, read_film, write_film

    film = read_film(path)
    if film.sound is None:
        chosen = [one for one in chosen if one[0]["operator"] not in SOUND_OPERATIONS]
    if chosen:
        write_film(out, _changed(chosen, film, VIDEO_OPERATIONS))
    return chosen


def _changed(chosen: Chosen, value: Any, operations: Mapping[str, Callable[..., Any]]) -> Any:
    for step, random in chosen:
        value = operations[step["operator"]](value, step, random)
    return value
