"""python -m services.aiops [--role rpc|jobs|all]"""

from libs.common.service import run
from services.aiops.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
