"""Augmentation recipes: operators that change copies of rows at random, so that a model sees more than there is.

How they work is in `services.dataset.engines`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libs.common.domain import invalid
from services.dataset.domain.fields import as_mapping
from services.dataset.domain.operators import Kind, Operator, Parameter
from services.dataset.domain.recipes import Step, read_steps

# More copies than that teach a model the operators.
_MOST_COPIES = 16
_MOST_SEED = 2**53


@dataclass(frozen=True)
class Augmentation:
    """An order of steps.

    Attributes:
        steps: applied one after the other to each copy.
        seed: another one gives other rows.
        copies: of each row.
    """

    steps: tuple[Step, ...]
    seed: int = 0
    copies: int = 1

    def to_json(self) -> dict[str, Any]:
        """For the task's input and the engine."""
        steps = [{"operator": step.operator, **step.parameters} for step in self.steps]
        return {"seed": self.seed, "copies": self.copies, "steps": steps}


def read_augmentation(given: object, media_type: str) -> Augmentation:
    """A recipe from what YAML gives: a mapping with `steps`, `seed`, `copies`, `description`.

    Args:
        media_type: a key of `AUGMENTATIONS`.

    Raises:
        DomainError: INVALID_FIELD, naming the place, such as `recipe.steps[2].rotate.max_degrees`.
    """
    recipe = as_mapping(given)
    if recipe is None:
        raise invalid("recipe", "is a mapping with `steps`, and `seed` and `copies` where they are not 0 and 1")
    for name in recipe:
        if name not in ("steps", "seed", "copies", "description"):
            raise invalid(f"recipe.{str(name)[:64]}", "is unknown; a recipe has description, seed, copies and steps")
    seed = _whole(recipe.get("seed", 0), "recipe.seed", 0, _MOST_SEED)
    copies = _whole(recipe.get("copies", 1), "recipe.copies", 1, _MOST_COPIES)
    steps = read_steps(recipe.get("steps"), AUGMENTATIONS[media_type], "DescribeAugmentation")
    return Augmentation(tuple(steps), seed, copies)


def _whole(value: object, field: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(field, f"is a whole number from {least} to {most}")
    return value


def _parameter(name: str, kind: Kind, default: Any, description: str, choices: tuple[str, ...] = ()) -> Parameter:
    return Parameter(name, kind, default, description, choices, optional=False)


def _operator(
    name: str, description: str, *parameters: Parameter, probability: float = 1.0, source: str = ""
) -> Operator:
    chance = _parameter("probability", "share", probability, "Of a copy being changed by this step.")
    return Operator(name, description, source, (*parameters, chance))


_EDA = "Wei and Zou: EDA, EMNLP 2019, arXiv 1901.11196"


def _words(description: str) -> Parameter:
    return _parameter("share", "share", 0.1, description)


_TEXT = (
    _operator(
        "insert_words", "Puts words of the text at other places of it too.", _words("Of the words."), source=_EDA
    ),
    _operator("swap_words", "Swaps words with their neighbours.", _words("Of the words."), source=_EDA),
    _operator("delete_words", "Takes words away; one always stays.", _words("Of the words."), source=_EDA),
    _operator(
        "misspell", "Replaces a letter of a word by one beside it on a QWERTY keyboard.", _words("Of the words.")
    ),
    _operator(
        "synonyms",
        "Replaces words by others of their group, in any case of letters.",
        _parameter("groups", "texts", None, "Words that mean the same, with commas between them."),
        _words("Of the words that are in a group."),
    ),
)
_IMAGE = (
    _operator(
        "rotate",
        "Turns the image about its middle; what comes in from outside is black.",
        _parameter("max_degrees", "number", 15, "Largest angle to either side."),
    ),
    _operator(
        "flip",
        "Mirrors the image.",
        _parameter("direction", "choice", "horizontal", "Left to right, or top to bottom.", ("horizontal", "vertical")),
        probability=0.5,
    ),
    _operator(
        "scale",
        "Makes the image larger or smaller.",
        _parameter("max_change", "share", 0.2, "Largest factor less one; as often its inverse."),
    ),
    _operator(
        "crop",
        "Cuts a rectangle out.",
        _parameter("min_share", "share", 0.8, "Least share of width and of height that stays."),
    ),
    _operator(
        "noise",
        "Adds Gaussian noise.",
        _parameter("max_deviation", "share", 0.05, "Largest standard deviation, as a share of the range of values."),
    ),
    _operator("blur", "Blurs.", _parameter("max_radius", "number", 2, "Largest standard deviation in pixels.")),
    _operator(
        "brightness",
        "Makes the image brighter or darker.",
        _parameter("max_change", "share", 0.2, "Largest factor less one; as often its inverse."),
    ),
    _operator(
        "contrast",
        "Strengthens or weakens the contrast.",
        _parameter("max_change", "share", 0.2, "Largest factor less one; as often its inverse."),
    ),
)
_PHASE_VOCODER = "Phase vocoder: Laroche and Dolson, IEEE Trans. Speech and Audio Processing, 1999"
_SEMITONES = _parameter("max_semitones", "number", 2, "Largest number of semitones, up to 24.")
_SNR = (
    _parameter("min_snr", "number", 10, "Least signal-to-noise ratio in decibels."),
    _parameter("max_snr", "number", 30, "Largest signal-to-noise ratio in decibels."),
)
_AUDIO = (
    _operator(
        "speed",
        "Plays faster and higher, or slower and lower.",
        _parameter("max_change", "share", 0.1, "Largest factor less one; as often its inverse."),
        source="Ko et al.: Audio augmentation for speech recognition, Interspeech 2015",
    ),
    _operator("pitch", "Makes the sound higher or lower, as long as it was.", _SEMITONES, source=_PHASE_VOCODER),
    _operator("noise", "Adds white noise.", *_SNR),
)
_VIDEO = (
    _operator(
        "brightness",
        "Makes all frames brighter or darker.",
        _parameter("max_change", "share", 0.2, "Largest factor less one; as often its inverse."),
    ),
    _operator(
        "noise",
        "Adds Gaussian noise to each frame.",
        _parameter("max_deviation", "share", 0.05, "Largest standard deviation, as a share of the range of values."),
    ),
    _operator(
        "drop_frames",
        "Leaves frames and their sound out; one always stays.",
        _parameter("share", "share", 0.1, "Of the frames."),
    ),
    _operator(
        "repeat_frames", "Shows frames twice, with their sound.", _parameter("share", "share", 0.1, "Of the frames.")
    ),
    _operator("reverse", "Plays backwards, the sound too.", probability=0.5),
    _operator("sound_pitch", "Makes the sound higher or lower, as long as it was.", _SEMITONES, source=_PHASE_VOCODER),
    _operator("sound_noise", "Adds white noise to the sound.", *_SNR),
    _operator("sound_mute", "Silences the sound.", probability=0.5),
)
# By what the rows of a dataset are.
AUGMENTATIONS = {
    media_type: {operator.name: operator for operator in operators}
    for media_type, operators in (("text", _TEXT), ("image", _IMAGE), ("audio", _AUDIO), ("video", _VIDEO))
}
