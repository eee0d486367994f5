"""The algorithms that are built in. What their engines do stands in `engines/algorithms`."""

from __future__ import annotations

from typing import Any

from libs.common.domain import DomainError
from services.training.domain.algorithm_parameters import (
    AUTOML,
    DETECTION,
    EMBEDDING,
    OCR,
    POLICY_GRADIENT,
    SEGMENTATION,
    SPEECH,
    column,
    columns,
    schema,
    whole,
)
from services.training.domain.algorithms import SYSTEM, Entry, Needs, Role

Json = dict[str, Any]

_ENGINES = "services.training.engines.algorithms"
_MIB = 1 << 20


def rate(default: float, title: str) -> Json:
    """Schema of a number above 0 and at most 1."""
    return {"type": "number", "title": title, "exclusiveMinimum": 0, "maximum": 1, "default": default}


def _tabular(**target: Json) -> Json:
    return schema(
        **target,
        feature_columns=columns("Columns to tell it from; none: all others"),
        model={
            "type": "string",
            "title": "Gradient-boosted trees, or a linear model",
            "enum": ["boosting", "linear"],
            "default": "boosting",
        },
        iterations=whole(100, 1, 2000, "Trees one after the other (boosting)"),
        learning_rate=rate(0.1, "Share of each tree that counts (boosting)"),
        max_leaves=whole(31, 2, 1024, "Leaves of a tree (boosting)"),
        l2={
            "type": "number",
            "title": "Weight of the squared size of leaves or coefficients",
            "minimum": 0,
            "maximum": 1_000_000,
            "default": 1.0,
        },
        max_categories=whole(
            50, 1, 1000, "Values of a text column that get an input of their own, most frequent first"
        ),
    )


def _entry(id: str, **fields: Any) -> Entry:
    return Entry(name=f"{SYSTEM}/algorithms/{id}/versions/1", **fields)


ENTRIES = (
    _entry(
        "tabular-classification",
        display_name="Tabular classification",
        description="Which of several classes a row is of, from numbers and categories. Gaps are filled.",
        task="classification",
        reads="table",
        framework="scikit-learn",
        code=f"{_ENGINES}.tabular:CLASSIFICATION",
        columns={"label_column": Role.LABEL, "feature_columns": Role.FEATURES},
        parameters=_tabular(label_column=column("label", "Column with the class")),
        needs=Needs(memory_bytes=500 * _MIB),
    ),
    _entry(
        "tabular-regression",
        display_name="Tabular regression",
        description="A number of a row, from numbers and categories. Gaps are filled.",
        task="regression",
        reads="table",
        framework="scikit-learn",
        code=f"{_ENGINES}.tabular:REGRESSION",
        columns={"target_column": Role.NUMBER, "feature_columns": Role.FEATURES},
        parameters=_tabular(target_column=column("target", "Column with the number")),
        needs=Needs(memory_bytes=500 * _MIB),
    ),
    _entry(
        "text-classification",
        display_name="Text classification",
        description="Which of several classes a text is of, from its words; Chinese by its characters.",
        task="classification",
        reads="text",
        framework="pytorch",
        code=f"{_ENGINES}.text:CLASSIFICATION",
        columns={"text_column": Role.TEXT, "label_column": Role.LABEL},
        parameters=schema(
            text_column=column("text", "Column with the text"),
            label_column=column("label", "Column with the class"),
            ngrams=whole(2, 1, 5, "Words or characters in a row that are looked at together"),
            buckets=whole(65_536, 1024, 4_194_304, "Rows of the table that n-grams are hashed into"),
            dimension=whole(32, 4, 512, "Numbers that stand for an n-gram"),
            epochs=whole(10, 1, 500, "Times that every row is read"),
            batch_size=whole(32, 1, 4096, "Rows a step"),
            learning_rate=rate(0.01, "Peak of the learning rate"),
        ),
        needs=Needs(memory_bytes=800 * _MIB),
    ),
    _entry(
        "automl",
        display_name="AutoML",
        description="Tells a column from the others: finds by itself what it takes, tries many models, mixes the best.",
        task="automl",
        reads="table",
        framework="scikit-learn",
        code=f"{_ENGINES}.automl:ALGORITHM",
        columns={"target_column": Role.TARGET, "feature_columns": Role.FEATURES},
        parameters=AUTOML,
        pauses=True,
        needs=Needs(memory_bytes=1000 * _MIB),
    ),
    _entry(
        "image-classification",
        display_name="Image classification",
        description="Which of several classes an image is of. A small convolutional network, trained from nothing.",
        task="classification",
        reads="image",
        framework="pytorch",
        code=f"{_ENGINES}.image:CLASSIFICATION",
        columns={"image_column": Role.FILE, "label_column": Role.LABEL},
        parameters=schema(
            image_column=column("file_name", "Column with the name of the image's file"),
            label_column=column("label", "Column with the class"),
            size=whole(32, 8, 256, "Pixels of a side that images are brought to"),
            color={"type": "boolean", "title": "In colour; otherwise in grey", "default": True},
            width=whole(16, 4, 256, "Channels of the first layer; each further layer has twice as many"),
            epochs=whole(10, 1, 500, "Times that every image is read"),
            batch_size=whole(32, 1, 4096, "Images a step"),
            learning_rate=rate(0.003, "Peak of the learning rate"),
        ),
        needs=Needs(memory_bytes=800 * _MIB),
    ),
    _entry(
        "object-detection",
        display_name="Object detection",
        description="Which objects are in a picture, and a box around each.",
        task="detection",
        reads="image",
        framework="pytorch",
        code=f"{_ENGINES}.detection:ALGORITHM",
        columns={"image_column": Role.FILE, "objects_column": Role.OTHER},
        parameters=DETECTION,
        needs=Needs(memory_bytes=1000 * _MIB),
    ),
    _entry(
        "ocr",
        display_name="Line recogniser",
        description="The text in a picture of one line, printed or written.",
        task="ocr",
        reads="image",
        framework="pytorch",
        code=f"{_ENGINES}.ocr:ALGORITHM",
        columns={"image_column": Role.FILE, "text_column": Role.TEXT},
        parameters=OCR,
        needs=Needs(memory_bytes=1000 * _MIB),
    ),
    _entry(
        "speech-commands",
        display_name="Speech commands",
        description="Which of several words, such as digits, is spoken in a sound.",
        task="speech-recognition",
        reads="audio",
        framework="pytorch",
        code=f"{_ENGINES}.speech:ALGORITHM",
        columns={"audio_column": Role.FILE, "label_column": Role.LABEL},
        parameters=SPEECH,
        needs=Needs(memory_bytes=1000 * _MIB),
    ),
    _entry(
        "chinese-word-segmentation",
        display_name="Chinese word segmentation",
        description="Where the words of a Chinese text end.",
        task="word-segmentation",
        reads="text",
        framework="pytorch",
        code=f"{_ENGINES}.segmentation:ALGORITHM",
        columns={"words_column": Role.OTHER},
        parameters=SEGMENTATION,
        needs=Needs(memory_bytes=800 * _MIB),
    ),
    _entry(
        "text-embedding",
        display_name="Text embedding",
        description="Vectors of texts that are near each other where the texts mean the same.",
        task="embedding",
        reads="text",
        framework="pytorch",
        code=f"{_ENGINES}.embedding:ALGORITHM",
        columns={"anchor_column": Role.TEXT, "positive_column": Role.TEXT, "negative_column": Role.TEXT},
        parameters=EMBEDDING,
        needs=Needs(memory_bytes=800 * _MIB),
    ),
    _entry(
        "policy-gradient",
        display_name="Policy-gradient agent",
        description="An agent that learns from rewards how to act in an environment. It needs no data.",
        task="reinforcement-learning",
        reads="",
        framework="pytorch",
        code=f"{_ENGINES}.policy_gradient:ALGORITHM",
        columns={},
        parameters=POLICY_GRADIENT,
        needs=Needs(memory_bytes=800 * _MIB),
    ),
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def built_in(name: str) -> Entry:
    """A built-in version. Raises NOT_FOUND."""
    entry = _BY_NAME.get(name)
    if entry is None:
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
    return entry
