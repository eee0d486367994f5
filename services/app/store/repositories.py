"""Rows of prompts and applications."""

from __future__ import annotations

from libs.common.db.repository import Repository
from services.app.domain.applications import Application, ApplicationVersion
from services.app.domain.prompts import Prompt, PromptVersion
from services.app.store import tables


class Prompts(Repository[Prompt]):
    table = tables.prompts
    entity = Prompt


class PromptVersions(Repository[PromptVersion]):
    table = tables.prompt_versions
    entity = PromptVersion


class Applications(Repository[Application]):
    table = tables.applications
    entity = Application


class ApplicationVersions(Repository[ApplicationVersion]):
    table = tables.application_versions
    entity = ApplicationVersion
