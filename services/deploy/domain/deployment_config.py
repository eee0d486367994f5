"""Deployment configurations."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.common.domain import Resource
from services.deploy.domain.spec import Spec


@dataclass(kw_only=True)
class DeploymentConfig(Resource):
    """How a model is to be served, to be used by many work orders."""

    display_name: str = ""
    description: str = ""
    spec: Spec = field(default_factory=Spec)
