"""Organizations and those who act in them."""

from __future__ import annotations

from dataclasses import dataclass

from libs.common.domain import DomainError, Resource

# The organization whose members may administer the others.
SYSTEM_ORG = "system"
ROLE_SYSTEM = 5
# Deeper trees are mistakes, and a bound keeps the walk to the root short.
MAX_DEPARTMENT_DEPTH = 16


@dataclass(kw_only=True)
class Organization(Resource):
    """A tenant."""

    display_name: str = ""
    record_content: bool = False


@dataclass(kw_only=True)
class Department(Resource):
    """A node of the tree of departments of one organization."""

    display_name: str = ""
    parent_department: str = ""


@dataclass(kw_only=True)
class Subject(Resource):
    """Whoever can hold a key: a user or a service account."""

    display_name: str = ""
    role: int = 0
    disabled: bool = False

    def require_active(self) -> None:
        """Raises TOKEN_REVOKED when it may no longer act."""
        if self.disabled or self.delete_time is not None:
            raise DomainError("TOKEN_REVOKED", "the account behind this key is disabled: ask an administrator")


@dataclass(kw_only=True)
class User(Subject):
    """A person."""

    email: str = ""
    department: str = ""


@dataclass(kw_only=True)
class ServiceAccount(Subject):
    """A program that acts on its own."""


def require_grantable_role(role: int, granter_role: int, org: str) -> None:
    """Nobody grants more than he has, and the system role lives in the organization `system` alone."""
    if role == 0:
        raise DomainError("INVALID_FIELD", "role must be set", field="role")
    if role == ROLE_SYSTEM and org != SYSTEM_ORG:
        raise DomainError("INVALID_FIELD", f"ROLE_SYSTEM exists only in orgs/{SYSTEM_ORG}", field="role")
    if role > granter_role:
        raise DomainError("ROLE_MISSING", "nobody grants a role above his own", required_role=str(role))


def require_tree(name: str, ancestors: list[str]) -> None:
    """`ancestors` from the new parent up to the root must not contain the department itself, nor be too many."""
    if name in ancestors:
        raise DomainError("INVALID_FIELD", "a department cannot lie below itself", field="parent_department")
    if len(ancestors) > MAX_DEPARTMENT_DEPTH:
        message = f"departments lie at most {MAX_DEPARTMENT_DEPTH} levels deep"
        raise DomainError("INVALID_FIELD", message, field="parent_department")


def require_same_org(name: str, other: str, field: str) -> None:
    """What a resource refers to must lie in its own organization."""
    if name.split("/")[:2] != other.split("/")[:2]:
        raise DomainError("INVALID_FIELD", f"{field}: must lie in the same organization", field=field)
