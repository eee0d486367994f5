"""What a method declares about itself: read once from its descriptor, so that nothing is decided twice."""

from __future__ import annotations

from dataclasses import dataclass

from argosy.common.v1 import options_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

# A caller may ask for at most this unless the method says otherwise.
DEFAULT_MAX_DEADLINE_SECONDS = 30.0


class PolicyError(Exception):
    """A method without a policy, or with one that lets nobody in. The service must not start."""


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """The rules of one method.

    Attributes:
        path: `/argosy.dataset.v1.DatasetService/GetDataset`.
        access: value of argosy.common.v1.Access.
        role: least value of argosy.common.v1.Role for ACCESS_ROLE.
        peers: services that may call; empty: any certificate of the mesh.
        max_deadline: seconds; longer deadlines are cut to it.
        audience_is_deployment: the token must carry the replica's deployment as audience instead of the service's name.
        reads: NO_SIDE_EFFECTS: may be repeated, and gets a read-only unit of work.
        has_request_id: the request carries `request_id`, so the call is idempotent by it.
        streams: the answer is a stream.
        sharable: the handler decides about names in other organizations.
    """

    path: str
    access: int
    role: int
    peers: frozenset[str]
    max_deadline: float
    audience_is_deployment: bool
    reads: bool
    has_request_id: bool
    streams: bool
    sharable: bool = False

    @property
    def long(self) -> bool:
        """A stream, or a read that may last longer than usual: counted apart from short calls, and ended by a drain,
        because its caller can ask elsewhere.
        """
        return self.streams or (self.reads and self.max_deadline > DEFAULT_MAX_DEADLINE_SECONDS)


def method_path(method: MethodDescriptor) -> str:
    """The path of the method in HTTP/2, `/package.Service/Method`."""
    service: ServiceDescriptor = method.containing_service  # type: ignore[assignment]
    return f"/{service.full_name}/{method.name}"


def read_policy(method: MethodDescriptor) -> MethodPolicy:
    """The policy of a method. Raises PolicyError, naming the method, if it has none or one that cannot be met."""
    path = method_path(method)
    options: MethodOptions = method.GetOptions()  # type: ignore[assignment]
    if not options.HasExtension(options_pb2.policy):  # type: ignore[arg-type]
        raise PolicyError(f"{path} has no policy")
    policy: options_pb2.Policy = options.Extensions[options_pb2.policy]  # type: ignore[arg-type]
    if policy.access == options_pb2.ACCESS_UNSPECIFIED:
        raise PolicyError(f"{path} does not say who has access")
    if policy.access == options_pb2.ACCESS_ROLE and policy.role == options_pb2.ROLE_UNSPECIFIED:
        raise PolicyError(f"{path} asks for a role and names none")
    if policy.access == options_pb2.ACCESS_PEER and not policy.peers:
        raise PolicyError(f"{path} is for peers and names none")
    if method.client_streaming:
        raise PolicyError(f"{path} streams requests; Argosy uploads in parts instead")
    reads = options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    if policy.sharable and not reads:
        raise PolicyError(f"{path} changes something, so it cannot be shared")
    return MethodPolicy(
        path=path,
        access=policy.access,
        role=policy.role,
        peers=frozenset(policy.peers),
        max_deadline=policy.max_deadline_ms / 1000 if policy.max_deadline_ms else DEFAULT_MAX_DEADLINE_SECONDS,
        audience_is_deployment=policy.audience_is_deployment,
        reads=reads,
        has_request_id="request_id" in method.input_type.fields_by_name,
        streams=method.server_streaming,
        sharable=policy.sharable,
    )
