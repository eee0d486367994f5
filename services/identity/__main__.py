"""python -m services.identity [--role rpc|jobs|all]"""

from libs.common.service import run
from services.identity.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
