"""Replicas: what runs, and those that evaluations lease."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from argosy.deploy.v1 import deploy_pb2
from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.domain import DomainError, Parent
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.deploy.domain.replica import GONE, STARTING, Replica, actor_name
from services.deploy.handlers.messages import replica_to_message, spec_from_message
from services.deploy.store import tables
from services.deploy.store.repositories import Replicas

if TYPE_CHECKING:
    from services.deploy.app import App

# An evaluation renews at a third of it.
_DEFAULT_LEASE_SECONDS = 120


async def list_replicas(request: pb.ListReplicasRequest, call: Call[App]) -> pb.ListReplicasResponse:
    """Those that are gone are history of the machine, not of the organization, and are not listed."""
    columns = tables.replicas.c
    filters = [columns.state != GONE]
    if request.deployment:
        filters.append(columns.deployment == request.deployment)
    found, position = await Replicas(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), filters=filters
    )
    return pb.ListReplicasResponse(
        replicas=[replica_to_message(replica) for replica in found],
        next_page_token=PageToken.encode(request, position),
    )


async def lease_replica(request: pb.LeaseReplicaRequest, call: Call[App]) -> deploy_pb2.Replica:
    """The supervisor brings it up; the caller polls with RenewReplica, which keeps it as well."""
    org = org_of(request.parent)
    if org_of(request.model_version) != org:
        raise DomainError("NOT_FOUND", f"{request.model_version} does not exist.", name=request.model_version)
    training = call.deps.training
    model = await training.model_version(request.model_version, call.forward() or await training.as_deploy(org))
    model.require_servable()
    repository, now = Replicas(call.uow), call.clock.now()
    seconds = request.ttl_seconds or _DEFAULT_LEASE_SECONDS
    replica = await repository.leased_by(request.holder, model.name)
    if replica is not None and not replica.expired(now):
        replica.renew(seconds, now)
        return replica_to_message(await repository.save(replica))
    uid = uuid7()
    name = f"{request.parent}/replicas/{resource_id('eval')}"
    replica = Replica(
        uid=uid,
        name=name,
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        state=STARTING,
        secrecy=model.secrecy,
        lineage=[Parent(model.name, model.manifest_digest, "deployed_from")],
        model_version=model.name,
        model_digest=model.manifest_digest,
        spec=spec_from_message(request.spec),
        audience=name,
        actor=actor_name(uid),
        traceparent=call.traceparent,
        holder=request.holder,
        lease_expire_time=now + timedelta(seconds=seconds),
    )
    return replica_to_message(await repository.insert(replica))


async def renew_replica(request: pb.RenewReplicaRequest, call: Call[App]) -> deploy_pb2.Replica:
    repository = Replicas(call.uow)
    replica = await _leased(repository, request.name)
    replica.renew(request.ttl_seconds or _DEFAULT_LEASE_SECONDS, call.clock.now())
    return replica_to_message(await repository.save(replica))


async def release_replica(request: pb.ReleaseReplicaRequest, call: Call[App]) -> deploy_pb2.Replica:
    repository = Replicas(call.uow)
    replica = await _leased(repository, request.name)
    if not replica.stopping:
        replica.stop("released", call.clock.now())
        await repository.save(replica)
    return replica_to_message(replica)


async def _leased(repository: Replicas, name: str) -> Replica:
    """Replicas of deployments cannot be touched through the lease. Raises NOT_FOUND."""
    replica = await repository.get(name, for_update=True)
    if not replica.for_evaluation:
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
    return replica
