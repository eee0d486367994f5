"""Applications: a prompt and a deployment under one name. Edited freely; callers see what was published."""

from __future__ import annotations

from dataclasses import dataclass

from libs.common.domain import DomainError, Resource


@dataclass(kw_only=True)
class Application(Resource):
    """What is being edited."""

    display_name: str = ""
    description: str = ""
    prompt_version: str = ""
    deployment: str = ""
    version_count: int = 0

    @property
    def published_version(self) -> str:
        return self.version_name(self.version_count) if self.version_count else ""

    def version_name(self, number: int | str) -> str:
        return f"{self.name}/versions/{number}"

    def publish(self) -> str:
        """The name of the version that is published now. Raises STATE_CONFLICT while something is missing."""
        for field in ("prompt_version", "deployment"):
            if not getattr(self, field):
                message = f"{self.name} has no {field}: set it, then publish."
                raise DomainError("STATE_CONFLICT", message, name=self.name, state=f"no {field}", wanted=field)
        self.version_count += 1
        return self.version_name(self.version_count)

    def require_version(self, number: str) -> str:
        """The name of a version; of the published one if `number` is empty, STATE_CONFLICT if there is none."""
        if number:
            return self.version_name(int(number))
        if not self.version_count:
            message = f"{self.name} is not published: call PublishApplication first."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="draft", wanted="published")
        return self.published_version


@dataclass(kw_only=True)
class ApplicationVersion(Resource):
    """An application as it was published."""

    prompt_version: str = ""
    deployment: str = ""
