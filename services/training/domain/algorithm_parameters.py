"""Parameters of AutoML and of algorithms for pictures, sounds, words, agents: a JSON Schema (draft 2020-12) each."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def schema(**properties: Json) -> Json:
    """A schema of parameters, each with its default."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def column(default: str, title: str) -> Json:
    """The name of a column; where there need not be one, its default is empty."""
    return {"type": "string", "title": title, "minLength": min(1, len(default)), "maxLength": 128, "default": default}


def columns(title: str) -> Json:
    """Schema of a parameter that names columns; none is all that no other parameter names."""
    return {
        "type": "array",
        "title": title,
        "items": {"type": "string", "minLength": 1, "maxLength": 128},
        "maxItems": 1000,
        "default": [],
    }


def whole(default: int, least: int, most: int, title: str) -> Json:
    """A whole number."""
    return {"type": "integer", "title": title, "minimum": least, "maximum": most, "default": default}


def real(default: float, least: float, most: float, title: str) -> Json:
    """A number."""
    return {"type": "number", "title": title, "minimum": least, "maximum": most, "default": default}


def lines(default: list[str], most: int, title: str) -> Json:
    """Lines of text."""
    line = {"type": "string", "minLength": 1, "maxLength": 500}
    return {"type": "array", "title": title, "items": line, "maxItems": most, "default": default}


def learning(epochs: int, batch_size: int, learning_rate: float) -> dict[str, Json]:
    """What all that pass over rows have in common."""
    return {
        "epochs": whole(epochs, 1, 10_000, "Times that every row is read"),
        "batch_size": whole(batch_size, 1, 4096, "Rows a step"),
        "learning_rate": real(learning_rate, 1e-6, 1.0, "Peak of the learning rate"),
    }


# A run of half a day at most: its right to read and write ends after a day.
AUTOML = schema(
    target_column=column("label", "Column with the answer: a class or a number"),
    feature_columns=columns("Columns to tell it from; none: all others"),
    task={
        "type": "string",
        "title": "What is learned; auto: what the columns look like",
        "enum": ["auto", "classification", "regression", "text-classification"],
        "default": "auto",
    },
    trials=whole(30, 1, 500, "Models that are tried at most"),
    seconds=whole(600, 1, 43_200, "Seconds for trying models and fitting the best ones to all rows"),
    folds=whole(5, 2, 10, "Parts of the rows, each of which is foretold once by a model that learned from the others"),
)

DETECTION = schema(
    image_column=column("file_name", "Column with the name of the picture's file"),
    objects_column=column("objects", "Column with the objects: label, and box as x, y, width, height in pixels"),
    image_size=whole(128, 32, 1024, "Pixels of the square that pictures are scaled to"),
    channels=whole(32, 8, 256, "Channels of each layer"),
    **learning(epochs=30, batch_size=16, learning_rate=0.01),
)

OCR = schema(
    image_column=column("file_name", "Column with the name of the picture of a line"),
    text_column=column("text", "Column with what stands there"),
    height=whole(32, 8, 128, "Pixels that lines are scaled to"),
    channels=whole(64, 8, 512, "Channels of the widest layer, and states of the recurrent one"),
    **learning(epochs=40, batch_size=16, learning_rate=0.003),
)

SPEECH = schema(
    audio_column=column("file_name", "Column with the name of the sound's file"),
    label_column=column("label", "Column with the word that is spoken"),
    seconds=real(1.0, 0.1, 10.0, "Seconds of a sound that are listened to: the loudest part of a longer one"),
    channels=whole(64, 8, 512, "Channels of each layer"),
    **learning(epochs=30, batch_size=32, learning_rate=0.003),
)

SEGMENTATION = schema(
    words_column=column("text", "Column with texts that have spaces between the words, or with lists of words"),
    channels=whole(96, 8, 1024, "Channels of each layer"),
    **learning(epochs=15, batch_size=32, learning_rate=0.003),
)

EMBEDDING = schema(
    anchor_column=column("anchor", "Column with a text"),
    positive_column=column("positive", "Column with a text that means the same, or answers it"),
    negative_column=column("", "Column with a text that does not, though it looks alike; none where empty"),
    buckets=whole(1 << 15, 1 << 8, 1 << 22, "Vectors that words and their parts share by a hash"),
    width=whole(128, 8, 2048, "Numbers of a vector"),
    temperature=real(0.05, 0.001, 1.0, "What cosines are divided by"),
    **learning(epochs=20, batch_size=64, learning_rate=0.005),
)

POLICY_GRADIENT = schema(
    environment={
        "type": "string",
        "title": "What the agent acts in: a pole on a cart, a map, or a table of transitions",
        "enum": ["cart-pole", "grid-world", "table"],
        "default": "cart-pole",
    },
    map=lines(["...G", ".#.X", "S..."], 20, "The grid world: S start, '.' free, # wall, G goal (1), X pit (-1)"),
    transitions=lines([], 10_000, "The table: lines of state, action, next state, probability, reward"),
    longest_episode=whole(500, 1, 10_000, "Steps after which an episode is over"),
    iterations=whole(60, 1, 100_000, "Rounds of acting and learning"),
    copies=whole(32, 1, 1024, "Copies of the environment that act at once"),
    horizon=whole(64, 1, 4096, "Steps that each copy takes in a round"),
    epochs=whole(4, 1, 100, "Times that what was seen in a round is read"),
    batch_size=whole(512, 1, 65_536, "Steps of the environment in a step of the optimiser"),
    learning_rate=real(0.003, 1e-6, 1.0, "Learning rate of the first round; it falls to 0"),
    discount=real(0.99, 0.0, 1.0, "What the reward of a step later counts"),
    width=whole(64, 4, 1024, "Numbers of each layer"),
)
