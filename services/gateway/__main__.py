"""python -m services.gateway [--role rpc]"""

import asyncio

import uvloop

from libs.common.service import run
from services.gateway.app import DEFINITION

if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # pyrefly: ignore[deprecated]
    run(DEFINITION)
