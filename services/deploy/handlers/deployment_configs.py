"""Deployment configurations: how a model is to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.deploy.v1 import deploy_pb2
from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.deploy.domain.deployment_config import DeploymentConfig
from services.deploy.handlers.messages import config_to_message, spec_from_message
from services.deploy.store.repositories import DeploymentConfigs

if TYPE_CHECKING:
    from services.deploy.app import App

_MUTABLE = frozenset({"display_name", "description", "spec", "labels", "secrecy"})


async def get_deployment_config(request: pb.GetDeploymentConfigRequest, call: Call[App]) -> deploy_pb2.DeploymentConfig:
    return config_to_message(await DeploymentConfigs(call.uow).get(request.name))


async def list_deployment_configs(
    request: pb.ListDeploymentConfigsRequest, call: Call[App]
) -> pb.ListDeploymentConfigsResponse:
    found, position = await DeploymentConfigs(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListDeploymentConfigsResponse(
        deployment_configs=[config_to_message(config) for config in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_deployment_config(
    request: pb.CreateDeploymentConfigRequest, call: Call[App]
) -> deploy_pb2.DeploymentConfig:
    wanted, now = request.deployment_config, call.clock.now()
    config = DeploymentConfig(
        uid=uuid7(),
        name=f"{request.parent}/deploymentConfigs/{request.deployment_config_id or resource_id('config')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=wanted.display_name,
        description=wanted.description,
        spec=spec_from_message(wanted.spec),
        **from_proto(wanted),
    )
    await DeploymentConfigs(call.uow).insert(config)
    call.uow.emit("deploy.deployment_config.created", config)
    return config_to_message(config)


async def update_deployment_config(
    request: pb.UpdateDeploymentConfigRequest, call: Call[App]
) -> deploy_pb2.DeploymentConfig:
    wanted = request.deployment_config
    changed = fields_to_change(wanted, request.update_mask, _MUTABLE)
    repository = DeploymentConfigs(call.uow)
    config = await repository.get(wanted.name)
    config.require_etag(wanted.etag)
    for field in ("display_name", "description"):
        if field in changed:
            setattr(config, field, getattr(wanted, field))
    given = from_proto(wanted)
    for field in ("labels", "secrecy"):
        if field in changed:
            setattr(config, field, given[field])
    if "spec" in changed:
        config.spec = spec_from_message(wanted.spec)
    config.update_time = call.clock.now()
    await repository.save(config)
    call.uow.emit("deploy.deployment_config.updated", config)
    return config_to_message(config)


async def delete_deployment_config(
    request: pb.DeleteDeploymentConfigRequest, call: Call[App]
) -> deploy_pb2.DeploymentConfig:
    repository = DeploymentConfigs(call.uow)
    config = await repository.get(request.name)
    config.require_etag(request.etag)
    await repository.soft_delete(config, call.clock.now())
    call.uow.emit("deploy.deployment_config.deleted", config)
    return config_to_message(config)


async def undelete_deployment_config(
    request: pb.UndeleteDeploymentConfigRequest, call: Call[App]
) -> deploy_pb2.DeploymentConfig:
    repository = DeploymentConfigs(call.uow)
    config = await repository.get(request.name, deleted=True)
    config.require_etag(request.etag)
    await repository.undelete(config, call.clock.now())
    call.uow.emit("deploy.deployment_config.undeleted", config)
    return config_to_message(config)
