"""python -m services.deploy [--role rpc|jobs|all]"""

from libs.common.service import run
from services.deploy.app import DEFINITION

if __name__ == "__main__":
    run(DEFINITION)
