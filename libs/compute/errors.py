"""How compute fails, apart from what engines raise themselves."""

from __future__ import annotations

from libs.common.domain import DomainError


class ComputeUnavailable(DomainError):
    """Ray does not answer, or refuses us. Waiting helps; nothing that runs is hurt."""

    def __init__(self, message: str = "the compute cluster does not answer") -> None:
        super().__init__("COMPUTE_UNAVAILABLE", message)


class ComputeLost(DomainError):
    """The actor is gone, or never was."""

    def __init__(self, name: str) -> None:
        super().__init__("COMPUTE_UNAVAILABLE", f"actor {name} is gone")


class ComputeTimeout(DomainError):
    """The actor did not answer in time; it may still be starting or be busy."""

    def __init__(self, name: str) -> None:
        super().__init__("DEADLINE_EXCEEDED", f"actor {name} did not answer in time")
