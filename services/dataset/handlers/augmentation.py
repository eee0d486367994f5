"""Augmentation: recipes are read, and what they are made of is described."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.rpc.call import Call
from services.dataset.domain.augmentation import AUGMENTATIONS, Augmentation, read_augmentation
from services.dataset.domain.datasets import MEDIA_TYPES
from services.dataset.domain.tasks import AUGMENT
from services.dataset.handlers.cleaning import operator_message, parse_yaml
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_TEXT, _TEXT_COLUMN = "text", "text"


async def augment_version(request: pb.AugmentVersionRequest, call: Call[App]) -> task_pb2.Task:
    dataset, version = await visible_version(call.uow, request.name, call.principal, writing=True)
    dataset.require_unlocked()
    media_type = MEDIA_TYPES.get(dataset.type, _TEXT)
    column = request.text_column or _TEXT_COLUMN
    if media_type == _TEXT:
        version.require_column(column, "text_column")
    # A second for the longest ones, in which this process has other calls to answer.
    recipe = await asyncio.to_thread(parse_augmentation, request.recipe, media_type)
    work = {"version": version.name, "media_type": media_type, "text_column": column, "recipe": recipe.to_json()}
    return await call.deps.tasks.create(call.uow, call.org, AUGMENT, version.name, work, call.principal.subject)


async def describe_augmentation(request: pb.DescribeAugmentationRequest, call: Call[App]) -> pb.AugmentationCatalogue:
    """The operators by kind of data."""
    del request, call
    media = [
        pb.AugmentationOperators(media_type=media_type, operators=[operator_message(one) for one in operators.values()])
        for media_type, operators in AUGMENTATIONS.items()
    ]
    return pb.AugmentationCatalogue(media=media)


def parse_augmentation(text: str, media_type: str) -> Augmentation:
    """A recipe from YAML. Raises INVALID_FIELD, naming the place."""
    return read_augmentation(parse_yaml(text), media_type)
