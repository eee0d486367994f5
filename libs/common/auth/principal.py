"""The one who makes a call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, on whose behalf, and through which service.

    Attributes:
        org: organization id, such as `acme`; empty when a service calls without a token.
        subject: `users/<id>`, `serviceAccounts/<id>` or `services/<name>`; empty on a public method.
        role: value of argosy.common.v1.Role inside `org`.
        token: the token itself, to be forwarded to peers; empty if there was none.
        api_key: `orgs/{org}/apiKeys/{api_key}` behind the token, if any.
        peer: service whose certificate carried the call, or `operator`; empty on methods that let every peer call.
        record_content: whether the organization lets prompts and answers into logs and spans.
        department: department of the subject, if it has one.
    """

    org: str = ""
    subject: str = ""
    role: int = 0
    token: str = ""
    api_key: str = ""
    peer: str = ""
    record_content: bool = False
    department: str = ""

    def through(self, peer: str) -> Principal:
        """The same principal, calling through this service."""
        return Principal(
            self.org,
            self.subject,
            self.role,
            self.token,
            self.api_key,
            peer,
            self.record_content,
            self.department,
        )

    @property
    def name(self) -> str:
        """`orgs/{org}/{subject}` for a subject inside an organization, else the subject."""
        return f"orgs/{self.org}/{self.subject}" if self.org else self.subject
