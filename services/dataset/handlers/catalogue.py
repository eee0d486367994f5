"""The catalogue of data products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.dataset.v1 import catalogue_pb2, dataset_pb2
from argosy.dataset.v1 import catalogue_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import inherit_secrecy
from libs.common.errors import invalid_field
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.domain.data_products import DataProduct
from services.dataset.domain.datasets import Visibility, sees_all
from services.dataset.store.data_products import DataProducts
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_TEXTS = ("display_name", "description", "licence")
_MUTABLE = frozenset({*_TEXTS, "dataset_version", "tags", "visibility", "labels"})


def _message(product: DataProduct) -> catalogue_pb2.DataProduct:
    shown = catalogue_pb2.DataProduct(
        **{field: getattr(product, field) for field in (*_TEXTS, "dataset_version", "tags", "row_count", "byte_count")},
        visibility=dataset_pb2.Visibility.Name(product.visibility),
        type=dataset_pb2.DatasetType.Name(product.type),
        columns=[dataset_pb2.Column(**column) for column in product.columns],
    )
    return to_proto(product, shown)


async def get_data_product(request: pb.GetDataProductRequest, call: Call[App]) -> catalogue_pb2.DataProduct:
    return _message(await DataProducts(call.uow).visible(request.name, call.principal))


async def list_data_products(request: pb.ListDataProductsRequest, call: Call[App]) -> pb.ListDataProductsResponse:
    page, after = page_size(request.page_size), PageToken.decode(request)
    if request.public:
        # Rows of every organization: what is for everybody, and nothing else.
        async with call.deps.database.system(read_only=True) as uow:
            found, position = await DataProducts(uow).list_public(page, after, request.search, request.type)
    else:
        products = DataProducts(call.uow)
        found, position = await products.list_of(request.parent, page, after, request.search, request.type)
    return pb.ListDataProductsResponse(
        data_products=[_message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def create_data_product(request: pb.CreateDataProductRequest, call: Call[App]) -> catalogue_pb2.DataProduct:
    given, now = request.data_product, call.clock.now()
    standard = from_proto(given)
    product = DataProduct(
        uid=uuid7(),
        name=f"{request.parent}/dataProducts/{request.data_product_id or resource_id('dp')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        **standard | {"secrecy": inherit_secrecy(standard["secrecy"])},
        **{field: getattr(given, field) for field in _TEXTS},
        tags=list(given.tags),
        visibility=given.visibility or Visibility.ORGANIZATION,
    )
    await _offer(product, given.dataset_version, call)
    await DataProducts(call.uow).insert(product)
    call.uow.emit("dataset.data_product.published", product)
    return _message(product)


async def update_data_product(request: pb.UpdateDataProductRequest, call: Call[App]) -> catalogue_pb2.DataProduct:
    given, products = request.data_product, DataProducts(call.uow)
    product = await products.get(given.name, for_update=True)
    product.require_etag(given.etag)
    offered = product.dataset_version
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field == "dataset_version":
            offered = given.dataset_version
        elif field == "visibility":
            product.visibility = given.visibility or Visibility.ORGANIZATION
        elif field == "labels":
            product.labels = dict(given.labels)
        else:
            setattr(product, field, list(given.tags) if field == "tags" else getattr(given, field))
    # Whoever may change the dataset may change what is offered of it, and nobody else.
    await _offer(product, offered, call)
    product.update_time = call.clock.now()
    await products.save(product)
    call.uow.emit("dataset.data_product.published", product)
    return _message(product)


async def delete_data_product(request: pb.DeleteDataProductRequest, call: Call[App]) -> catalogue_pb2.DataProduct:
    products = DataProducts(call.uow)
    product = await products.get(request.name, for_update=True)
    product.require_etag(request.etag)
    # Its dataset may be gone: then whoever published it, or an administrator, still can withdraw it.
    if call.principal.subject != product.creator and not sees_all(call.principal.subject, call.principal.role):
        await visible_version(call.uow, product.dataset_version, call.principal, writing=True)
    await products.soft_delete(product, call.clock.now())
    call.uow.emit("dataset.data_product.withdrawn", product)
    return _message(product)


async def _offer(product: DataProduct, version_name: str, call: Call[App]) -> None:
    if not version_name:
        raise invalid_field("data_product.dataset_version", "is missing")
    dataset, version = await visible_version(call.uow, version_name, call.principal, writing=True)
    product.offer(dataset, version)
    product.require_publishable()
