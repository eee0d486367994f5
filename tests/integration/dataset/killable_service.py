"""python -m killable_service JWK_FILE --role rpc|jobs: the dataset service, with a test's key instead of identity."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from libs.common.service import run
from services.dataset.app import DEFINITION

if __name__ == "__main__":
    key = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    async def jwks(_app: object) -> list[dict[str, str]]:
        return [key]

    run(dataclasses.replace(DEFINITION, jwks=jwks), sys.argv[2:])
